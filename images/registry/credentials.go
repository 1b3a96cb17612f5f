// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"encoding/base64"
	"fmt"
	"io"
	"strings"

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
