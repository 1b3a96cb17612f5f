// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/berthd/berth/integration/cri"
	"github.com/berthd/berth/integration/kubelet"
)

// kubeTransports runs f for both ways of reaching a stream.
func kubeTransports(t *testing.T, f func(t *testing.T, over cri.Transport)) {
	t.Helper()
	for _, over := range []cri.Transport{cri.SPDY, cri.WebSocket} {
		t.Run(over.String(), func(t *testing.T) { f(t, over) })
	}
}

func kubeExec(t *testing.T, n *kubeNode) {
	kubeTransports(t, func(t *testing.T, over cri.Transport) {
		text := strings.Repeat("a line for head\n", 20000)
		var out, errs bytes.Buffer
		err := n.k.Exec(n.ctx(t), "web", "client",
			cri.Streams{Over: over, Stdin: strings.NewReader(text), Stdout: &out, Stderr: &errs},
			"sh", "-c", fmt.Sprintf("head -c %d; echo problem >&2; exit 7", len(text)))
		var exit *cri.ExitError
		if !errors.As(err, &exit) || exit.Code != 7 {
			t.Errorf("exec: %v, want exit code 7", err)
		}
		if out.String() != text || errs.String() != "problem\n" {
			t.Errorf("%d bytes of %d came back, stderr %q", out.Len(), len(text), errs.String())
		}

		in, typing := io.Pipe()
		defer typing.Close()
		sizes := make(chan cri.Size, 1)
		sizes <- cri.Size{Width: 100, Height: 40}
		defer close(sizes)
		out.Reset()
		go func() { _, _ = typing.Write([]byte("hello\n")) }()
		err = n.k.Exec(n.ctx(t), "web", "client", cri.Streams{Over: over, Stdin: in, Stdout: &out, Terminal: true, Sizes: sizes},
			"sh", "-c", "until [ \"$(stty size)\" = '40 100' ]; do usleep 10000; done; read word; echo got $word; tty; echo $TERM")
		if err != nil || !strings.Contains(out.String(), "got hello\r\n/dev/pts/0\r\nxterm\r\n") {
			t.Errorf("with a terminal: %v, %q", err, out.String())
		}
		if err := n.k.Exec(n.ctx(t), "web", "client", cri.Streams{Over: over, Stdout: &out}, "/no/such/program"); err == nil {
			t.Error("exec of a missing program succeeds")
		}
	})
}

func kubeAttach(t *testing.T, n *kubeNode) {
	n.awaitReady(t, "attach")
	kubeTransports(t, func(t *testing.T, over cri.Transport) {
		n.attach(t, "pipe", cri.Streams{Over: over}, over.String()+"\n",
			"pipe: "+over.String()+"\n", "error: "+over.String()+"\n")
		sizes := make(chan cri.Size, 1)
		sizes <- cri.Size{Width: 90, Height: 30}
		n.attach(t, "terminal", cri.Streams{Over: over, Terminal: true, Sizes: sizes}, "hello\n",
			"terminal: hello of 30 90\r\n", "")
		close(sizes)
	})
	// Detached clients leave both running.
	pod := n.awaitReady(t, "attach")
	if pod.Container("pipe").RestartCount+pod.Container("terminal").RestartCount != 0 {
		t.Errorf("restarted: %v", pod)
	}
}

// attach types a line until the answers come, then detaches.
func (n *kubeNode) attach(t *testing.T, container string, s cri.Streams, line, stdout, stderr string) {
	t.Helper()
	ctx, detach := context.WithCancel(n.ctx(t))
	defer detach()
	in, typing := io.Pipe()
	var out, errs syncBuffer
	s.Stdin, s.Stdout = in, &out
	if !s.Terminal {
		s.Stderr = &errs
	}
	done := make(chan error, 1)
	go func() { done <- n.k.Attach(ctx, "attach", container, s) }()
	eventually(t, patience, func() string {
		// The terminal's size may come after the first line.
		if _, err := typing.Write([]byte(line)); err != nil {
			return err.Error()
		}
		if !strings.Contains(out.String(), stdout) || !strings.Contains(errs.String(), stderr) {
			return fmt.Sprintf("%s answers %q, %q", container, out.String(), errs.String())
		}
		return ""
	})
	detach()
	<-done
	_ = typing.Close()
}

func kubeForward(t *testing.T, n *kubeNode) {
	n.awaitReady(t, "web")
	kubeTransports(t, func(t *testing.T, over cri.Transport) {
		got, err := n.k.Forward(n.ctx(t), "web", over, 8080, []byte("GET /index.html HTTP/1.0\r\n\r\n"))
		if err != nil || !strings.HasSuffix(string(got), "\r\n\r\nfirst\nsecond\n") {
			t.Errorf("got %q, %v, want the page", got, err)
		}
		if _, err := n.k.Forward(n.ctx(t), "web", over, 8099, []byte("x")); err == nil || !strings.Contains(err.Error(), "8099") {
			t.Errorf("forward to a closed port: %v, want an error that names it", err)
		}
	})
}

// followed is what a follower of a log gets, in the end.
type followed struct {
	done chan struct{}
	text string
	err  error
}

// kubeFollow reads the log of the pod talk as `kubectl logs -f` does.
func kubeFollow(t *testing.T, n *kubeNode) {
	n.await(t, "talk", "running", func(p *kubelet.Pod) bool { return p.Container("talk").State.Running != nil })
	n.follow.done = make(chan struct{})
	go func() {
		defer close(n.follow.done)
		n.follow.text, n.follow.err = n.k.ContainerLog("talk", "talk", "follow=true")
	}()
}

// talk is what each line of the pod talk has behind its number.
const talk = " 0123456789012345678901234567890123456789"

// kubeRotation: no line is lost or doubled by rotation.
func kubeRotation(t *testing.T, n *kubeNode) {
	const lines = 1500
	pod := n.await(t, "talk", "started", func(p *kubelet.Pod) bool { return p.Container("talk").State.Running != nil })
	eventually(t, patience, func() string {
		pieces, err := n.k.Output(pod, "talk", 0)
		if err != nil {
			return err.Error()
		}
		if len(pieces) < lines {
			return fmt.Sprintf("%d lines of %d", len(pieces), lines)
		}
		return ""
	})
	pieces, err := n.k.Output(pod, "talk", 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range pieces {
		if p.Text != strconv.Itoa(i+1)+talk {
			t.Fatalf("line %d of the files is %q", i+1, p.Text)
		}
	}
	if got := n.k.Rotations(pod, "talk"); got < 2 {
		t.Errorf("%d rotations of %d bytes, want some more", got, lines*90)
	}
	n.tell(t, "talked")
	<-n.follow.done
	if n.follow.err != nil {
		t.Fatalf("follow: %v", n.follow.err)
	}
	// The kubelet's follower may miss the last lines before a rotation; but it goes
	// on after it, and tells nothing twice.
	got := strings.Split(strings.TrimSuffix(n.follow.text, "\n"), "\n")
	last := 0
	for i, line := range got[:len(got)-1] {
		now, err := strconv.Atoi(strings.TrimSuffix(line, talk))
		if err != nil || now <= last {
			t.Fatalf("line %d of %d of the follower, after %d, is %q", i+1, len(got), last, line)
		}
		last = now
	}
	if len(got) < lines*9/10 || last != lines || got[len(got)-1] != "end" {
		t.Errorf("the follower got %d lines up to %d, the last one %q", len(got), last, got[len(got)-1])
	}
}
