// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"go.podman.io/image/v5/pkg/docker/config"
	"go.podman.io/image/v5/types"
)

// Access is what one call says about how it reaches its registry. The zero value
// leaves everything to the configuration.
type Access struct {
	// Credentials are for the registry that the reference names, and for no
	// mirror of it. Nil: those of files and helpers.
	Credentials *Credentials
	// AuthFile replaces the configured files of credentials.
	AuthFile string
	// PlainHTTP has the registry spoken to by HTTP. SkipVerify accepts any
	// certificate. Neither counts for mirrors.
	PlainHTTP, SkipVerify bool
}

// Credentials are what a client gave along with its call. They are values that
// survive JSON, so that a call can be handed to another process. None of it is
// shown by package fmt, but for the user's name.
type Credentials struct {
	Username, Password string
	// Auth is "username:password" in base64, for when they are not given apart.
	// What is not base64, or has no colon, is ignored.
	Auth string
	// IdentityToken is exchanged for a token of the registry's.
	IdentityToken string
	// RegistryToken is sent as it is.
	RegistryToken string
}

// Format writes whose credentials they are, whatever the verb.
func (c Credentials) Format(f fmt.State, _ rune) {
	name, _ := c.pair()
	_, _ = io.WriteString(f, "credentials of "+name)
}

var _ fmt.Formatter = Credentials{}

// pair is a name and a password.
func (c Credentials) pair() (name, password string) {
	if c.Username != "" || c.Password != "" {
		return c.Username, c.Password
	}
	decoded, err := base64.StdEncoding.DecodeString(c.Auth)
	if err != nil {
		return "", ""
	}
	name, password, found := strings.Cut(strings.TrimRight(string(decoded), "\x00"), ":")
	if !found {
		return "", ""
	}
	return name, password
}

// auth returns the credentials as the libraries have them, and the token to send.
func (c Credentials) auth() (*types.DockerAuthConfig, string) {
	name, password := c.pair()
	return &types.DockerAuthConfig{Username: name, Password: password, IdentityToken: c.IdentityToken}, c.RegistryToken
}

// token is what to send as it is, or "".
func (a Access) token() string {
	if a.Credentials == nil {
		return ""
	}
	return a.Credentials.RegistryToken
}

// credentials returns who asks at which host, for a source, as containerd's
// authorizer wants to know it: a name and a password, or only an identity token.
func (r *Registry) credentials(s source, a Access) func(host string) (string, string, error) {
	return func(host string) (string, string, error) {
		var found types.DockerAuthConfig
		if a.Credentials != nil && s.own && s.at(host) {
			given, _ := a.Credentials.auth()
			found = *given
		} else {
			// Files may have credentials for a repository.
			key := host
			if s.at(host) {
				key = s.ref.Repository()
			}
			var err error
			if found, err = r.lookUp(key, a); err != nil {
				return "", "", fmt.Errorf("credentials for %s: %w: %w", key, err, errdefs.ErrFailedPrecondition)
			}
		}
		if found.IdentityToken != "" {
			return "", found.IdentityToken, nil
		}
		return found.Username, found.Password, nil
	}
}

// lookUp asks files and helpers.
func (r *Registry) lookUp(key string, a Access) (types.DockerAuthConfig, error) {
	system := r.System(Access{AuthFile: a.AuthFile})
	found, err := config.GetCredentials(system, key)
	if err != nil || found != (types.DockerAuthConfig{}) || system.AuthFilePath == "" || r.config.DockerConfigDir == "" {
		return found, err
	}
	system.AuthFilePath, system.DockerCompatAuthFilePath = "", filepath.Join(r.config.DockerConfigDir, "config.json")
	return config.GetCredentials(system, key)
}

// single is an authorizer that is asked for one request at a time: containerd's
// reads a token's time of expiry while another request gets the token. A request
// waits for no more than it would have to anyway: a token of the same repository.
type single struct {
	docker.Authorizer
	turn chan struct{} // holds one
}

func (s *single) Authorize(ctx context.Context, q *http.Request) error {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.turn }()
	return s.Authorizer.Authorize(ctx, q)
}
