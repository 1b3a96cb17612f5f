/* SPDX-License-Identifier: Apache-2.0 */

/* First process of a pod's sandbox: holds its namespaces, collects orphans,
 * and ends with 0 when asked to. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
	sigset_t all;
	sigfillset(&all);
	/* Blocked and then taken one by one: no handler, no race, no timer. */
	sigprocmask(SIG_BLOCK, &all, NULL);
	for (;;) {
		int sig;
		if (sigwait(&all, &sig) != 0)
			return 1;
		if (sig == SIGTERM || sig == SIGINT)
			return 0;
		if (sig == SIGCHLD)
			while (waitpid(-1, NULL, WNOHANG) > 0)
				;
	}
}
