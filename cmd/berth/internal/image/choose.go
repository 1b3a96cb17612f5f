// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bufio"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/cmd/berth/internal/terminal"
	"github.com/berthd/berth/images/reference"
)

// chooser asks the user which of several registries a short name means; nil if there
// is nobody to ask.
func chooser(s *session.Session) func(string, []reference.Reference) (reference.Reference, error) {
	if !terminal.Is(s.In) || !terminal.Is(s.Err) {
		return nil
	}
	return func(name string, candidates []reference.Reference) (reference.Reference, error) {
		for i, c := range candidates {
			if _, err := fmt.Fprintf(s.Err, "%3d  %s\n", i+1, c.Text()); err != nil {
				return reference.Reference{}, err
			}
		}
		answer, err := ask(s, fmt.Sprintf("Which one is %s? [1] ", name))
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

// ask writes a question and returns the user's line.
func ask(s *session.Session, question string) (string, error) {
	if _, err := s.Err.WriteString(question); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(s.In).ReadString('\n')
	return strings.TrimSpace(line), err
}

// sure asks whether the user means it. Without a terminal there must have been
// --force.
func sure(s *session.Session, warning string) (bool, error) {
	if !terminal.Is(s.In) || !terminal.Is(s.Err) {
		return false, session.Usage("there is no terminal to ask whether you are sure: give -f")
	}
	answer, err := ask(s, warning+"\nGo on? [y/N] ")
	return strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes"), err
}
