// SPDX-License-Identifier: Apache-2.0

// Package policy owns the question whether an image may be used here: it reads
// a signature policy (policy.json) and holds the digest that a name was resolved
// to against it. The rules, the formats of signatures and the places where these
// are kept (registries.d) are those of go.podman.io/image, as CRI-O and podman
// have them. It refuses to resolve names, to fetch layers, and to remember
// answers.
package policy

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/containerd/errdefs"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
)

// ErrInvalid says that there is no policy to go by: its file, or a key that it
// names, is missing, unreadable or wrong. Nothing is accepted then. Its class is
// ErrFailedPrecondition.
var ErrInvalid = errdefs.ErrFailedPrecondition.WithMessage("invalid signature policy")

// Config says where policies and signatures are. The zero value is the system's.
type Config struct {
	// Path is the policy of all namespaces that have none of their own. Default:
	// policy.json where podman looks for it, which are $HOME/.config/containers,
	// /etc/containers and /usr/share/containers.
	Path string
	// Dir holds the policies of single namespaces, <Dir>/<namespace>.json. Empty:
	// there are none.
	Dir string
	// RegistriesDir says where the signatures of which images are kept. Default:
	// /etc/containers/registries.d.
	RegistriesDir string
}

// Policy is a policy that was read. It does not follow later changes of its
// files, those of keys excepted. Safe for concurrent use.
type Policy struct {
	rules         *signature.Policy
	registriesDir string
}

// Load reads the policy of a namespace: its own if there is one, else that of
// all. A namespace is what the caller takes for one, Kubernetes' or containerd's;
// "" has no policy of its own. Nothing is asked of a network. The error is
// ErrInvalid, or ErrInvalidArgument if the namespace cannot be one.
func Load(c Config, namespace string) (*Policy, error) {
	rules, err := load(c, namespace)
	if err != nil {
		return nil, err
	}
	return &Policy{rules: rules, registriesDir: c.RegistriesDir}, nil
}

func load(c Config, namespace string) (*signature.Policy, error) {
	if c.Dir != "" && namespace != "" {
		if !filepath.IsLocal(namespace) || filepath.Base(namespace) != namespace {
			return nil, fmt.Errorf("signature policy: namespace %q: %w", namespace, errdefs.ErrInvalidArgument)
		}
		own, err := signature.NewPolicyFromFile(filepath.Join(c.Dir, namespace+".json"))
		if err == nil {
			return own, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("namespace %s: %w: %w", namespace, ErrInvalid, err)
		}
	}
	rules, err := signature.DefaultPolicy(&types.SystemContext{SignaturePolicyPath: c.Path})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return rules, nil
}
