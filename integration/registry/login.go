// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/bcrypt"
)

const (
	tokenPath = "/token"
	service   = "berth test registry"
	keyID     = "key"
	// tokenLife is how long a token is good for; clients must ask for no new one
	// in a test.
	tokenLife = 10 * time.Minute
)

// authConfig is the part of the registry's configuration about logging in.
func (r *Registry) authConfig(o Options) string {
	switch o.Auth {
	case Basic:
		return fmt.Sprintf("auth: {htpasswd: {realm: berth, path: %q}}\n", filepath.Join(o.Dir, "htpasswd"))
	case Token:
		return fmt.Sprintf("auth: {token: {realm: %q, service: %q, issuer: %q, jwks: %q}}\n",
			r.realm(), service, service, filepath.Join(o.Dir, "jwks.json"))
	}
	return ""
}

// issuer is the server of tokens. Its tokens are JWT as the registry wants them:
// https://distribution.github.io/distribution/spec/auth/jwt/.
type issuer struct {
	key   *ecdsa.PrivateKey
	realm string
}

// newIssuer also writes the files by which the registry knows who may log in.
func newIssuer(realm, dir string) (*issuer, error) {
	hash, err := bcrypt.GenerateFromPassword([]byte(Password), bcrypt.MinCost)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "htpasswd"), fmt.Appendf(nil, "%s:%s\n", Username, hash), 0o600); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	point, err := key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		return nil, err
	}
	keys, err := json.Marshal(map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "kid": keyID, "use": "sig", "alg": "ES256",
		"x": encode(point[1:33]), "y": encode(point[33:]),
	}}})
	if err != nil {
		return nil, err
	}
	return &issuer{key, realm}, os.WriteFile(filepath.Join(dir, "jwks.json"), keys, 0o600)
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// ServeHTTP answers both kinds of requests that there are: GET, and POST as OAuth
// has it. Who does not log in gets a token that is good for nothing.
func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	granted, valid := i.login(r)
	if !valid {
		problem(w, http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password")
		return
	}
	var access []map[string]any
	for _, scope := range r.Form["scope"] {
		for one := range strings.FieldsSeq(scope) {
			kind, rest, _ := strings.Cut(one, ":")
			name, actions, ok := strings.Cut(rest, ":")
			if ok && granted {
				access = append(access, map[string]any{"type": kind, "name": name, "actions": strings.Split(actions, ",")})
			}
		}
	}
	token, err := i.sign(access)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{ // the client may have gone
		"token": token, "access_token": token, "expires_in": int(tokenLife.Seconds()), "issued_at": time.Now().UTC(),
	})
}

// login tells whether whoever asks gets access, and whether what he says of
// himself is true; saying nothing is.
func (i *issuer) login(r *http.Request) (granted, valid bool) {
	switch name, password, ok := r.BasicAuth(); {
	case ok:
		granted = name == Username && password == Password
	case r.Form.Get("grant_type") == "password":
		granted = r.Form.Get("username") == Username && r.Form.Get("password") == Password
	case r.Form.Get("grant_type") == "refresh_token":
		granted = r.Form.Get("refresh_token") == IdentityToken
	default:
		return false, true
	}
	return granted, granted
}

func (i *issuer) sign(access any) (string, error) {
	header, err := json.Marshal(map[string]string{"typ": "JWT", "alg": "ES256", "kid": keyID})
	if err != nil {
		return "", err
	}
	now := time.Now()
	claims, err := json.Marshal(map[string]any{
		"iss": service, "aud": service, "sub": Username, "jti": rand.Text(), "access": access,
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(tokenLife).Unix(),
	})
	if err != nil {
		return "", err
	}
	text := encode(header) + "." + encode(claims)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, sum[:])
	if err != nil {
		return "", err
	}
	var signature [64]byte
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return text + "." + encode(signature[:]), nil
}

// problem answers with an error as registries word it.
func problem(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{ // the client may have gone
		"errors": []any{map[string]string{"code": code, "message": message}},
	})
}
