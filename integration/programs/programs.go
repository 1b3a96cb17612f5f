// SPDX-License-Identifier: Apache-2.0

// Package programs writes programs that tests execute.
package programs

import (
	"os"
	"syscall"
	"testing"
)

// Write writes an executable file, which can be executed at once, and returns its path.
//
// A process that is started while the file is open for writing has the descriptor
// until its own execve(2), and so long nobody can execute the file: ETXTBSY. No
// process of this program's is started in that time.
func Write[T string | []byte](t testing.TB, path string, content T) string {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	return path
}
