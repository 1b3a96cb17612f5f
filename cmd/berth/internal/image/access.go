// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/cmd/berth/internal/terminal"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
	config "github.com/berthd/berth/plugin/image"
)

// access are the flags of how a registry is spoken to.
type access struct {
	creds, authFile  string
	tlsVerify, plain bool
}

func (a *access) bind(flags *pflag.FlagSet) {
	flags.StringVar(&a.creds, "creds", "", "`USER[:PASSWORD]` for the registry; without a password it is asked for")
	flags.StringVar(&a.authFile, "authfile", os.Getenv("REGISTRY_AUTH_FILE"), "`FILE` of credentials, as podman login writes it [$REGISTRY_AUTH_FILE]")
	flags.BoolVar(&a.tlsVerify, "tls-verify", true, "check the registry's certificate; without, plain HTTP is tried too")
	flags.BoolVar(&a.plain, "plain-http", false, "speak plain HTTP to the registry")
}

// access is what the flags say, for one registry. A password is asked for once.
func (a *access) access(ctx context.Context, s *session.Session) (registry.Access, error) {
	r := registry.Access{AuthFile: a.authFile, PlainHTTP: a.plain, SkipVerify: !a.tlsVerify}
	if a.creds == "" {
		return r, nil
	}
	user, password, given := strings.Cut(a.creds, ":")
	if user == "" {
		return r, session.Usage("--creds, want USER[:PASSWORD]")
	}
	if !given {
		var err error
		if password, err = askPassword(ctx, s); err != nil {
			return r, err
		}
		a.creds = user + ":" + password
	}
	r.Credentials = &registry.Credentials{Username: user, Password: password}
	return r, nil
}

// acceptance are the flags of which signature policy counts.
type acceptance struct{ policy, namespace string }

func (a *acceptance) bind(flags *pflag.FlagSet) {
	flags.StringVar(&a.policy, "signature-policy", "", "`FILE` of which images are accepted (default /etc/containers/policy.json)")
	flags.StringVar(&a.namespace, "policy-namespace", "", "`NAMESPACE` whose policy counts, as that of a pod")
}

// configure puts the flags over the configuration.
func (a *acceptance) configure(c *config.Config) {
	if a.policy != "" {
		c.SignaturePolicy, c.SignaturePolicyDir = a.policy, ""
	}
}

// chooser asks the user which of several registries a short name means; nil if there
// is nobody to ask.
func chooser(ctx context.Context, s *session.Session) func(string, []reference.Reference) (reference.Reference, error) {
	if !terminal.Is(s.In) || !terminal.Is(s.Err) {
		return nil
	}
	return func(name string, candidates []reference.Reference) (reference.Reference, error) {
		for i, c := range candidates {
			if _, err := fmt.Fprintf(s.Err, "%3d  %s\n", i+1, c.Text()); err != nil {
				return reference.Reference{}, err
			}
		}
		answer, err := ask(ctx, s, fmt.Sprintf("Which one is %s? [1] ", name))
		if err != nil {
			return reference.Reference{}, err
		}
		if answer == "" {
			answer = "1"
		}
		n, err := strconv.Atoi(answer)
		if err != nil || n < 1 || n > len(candidates) {
			return reference.Reference{}, fmt.Errorf("answer %q, want 1 to %d: %w", answer, len(candidates), errdefs.ErrInvalidArgument)
		}
		return candidates[n-1], nil
	}
}

// typed returns what somebody types, or the end of ctx: a read of a terminal cannot be
// ended, and is left alone then.
func typed(ctx context.Context, read func() (string, error)) (string, error) {
	type line struct {
		text string
		err  error
	}
	lines := make(chan line, 1)
	go func() {
		text, err := read()
		lines <- line{text, err}
	}()
	select {
	case l := <-lines:
		return l.text, l.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// ask writes a question and returns the user's line.
func ask(ctx context.Context, s *session.Session, question string) (string, error) {
	if _, err := s.Err.WriteString(question); err != nil {
		return "", err
	}
	line, err := typed(ctx, func() (string, error) { return bufio.NewReader(s.In).ReadString('\n') })
	return strings.TrimSpace(line), err
}

// askPassword is ask without an echo.
func askPassword(ctx context.Context, s *session.Session) (string, error) {
	fd := int(s.In.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", session.Usage("--creds has no password, and there is no terminal to ask for it")
	}
	_, _ = s.Err.WriteString("Password: ") // to see no question is no fault
	password, err := typed(ctx, func() (string, error) {
		b, err := term.ReadPassword(fd)
		return string(b), err
	})
	_, _ = s.Err.WriteString("\n")
	return password, errors.Join(err, term.Restore(fd, before))
}

// sure asks whether the user means it. Without a terminal there must have been
// --force.
func sure(ctx context.Context, s *session.Session, warning string) (bool, error) {
	if !terminal.Is(s.In) || !terminal.Is(s.Err) {
		return false, session.Usage("there is no terminal to ask whether you are sure: give -f")
	}
	answer, err := ask(ctx, s, warning+"\nGo on? [y/N] ")
	return strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes"), err
}
