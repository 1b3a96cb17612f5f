// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"strconv"
	"strings"

	"github.com/berthd/berth/shim/fault"
)

// The schemes of a stream's address. A path without one is a fifo.
const (
	schemeNone     = "" // no stream: /dev/null
	schemeFifo     = "fifo"
	schemeFile     = "file"
	schemeBinary   = "binary"
	schemeBinaryV2 = "binary-v2"
	schemeCRI      = "cri"
	schemePTY      = "pty"
	schemePipe     = "pipe" // the shim's own: for clients of attach
)

// uri is the address of a stream, taken apart. net/url is not used: it is large,
// and its query is a map, which loses the order that a logger's arguments need.
type uri struct {
	scheme string
	path   string
	query  []pair
}

type pair struct{ key, value string }

func (u *uri) isLogger() bool { return u.scheme == schemeBinary || u.scheme == schemeBinaryV2 }

// parseURI takes apart the address of a stream. Unknown schemes, and those that
// only the third version of the shim's protocol has, are InvalidArgument.
func parseURI(s string) (uri, error) {
	if s == "" {
		return uri{}, nil
	}
	scheme, rest, found := strings.Cut(s, "://")
	if !found || strings.HasPrefix(s, "/") {
		return pathURI(schemeFifo, s, s)
	}
	switch scheme {
	case schemePTY, schemePipe:
		if rest != "" {
			return uri{}, invalid(s, "nothing may follow "+scheme+"://")
		}
		return uri{scheme: scheme}, nil
	case schemeFifo: // the rest is a path as it is, as without scheme
		return pathURI(scheme, rest, s)
	case schemeFile, schemeBinary, schemeBinaryV2, schemeCRI:
	default:
		if strings.HasPrefix(scheme, "ttrpc+") || strings.HasPrefix(scheme, "grpc+") {
			return uri{}, invalid(s, "streaming IO needs version 3 of the shim protocol")
		}
		return uri{}, invalid(s, "unknown scheme "+strconv.Quote(scheme))
	}
	rest, query, _ := strings.Cut(rest, "?")
	rest, ok := unescape(rest, false)
	if !ok {
		return uri{}, invalid(s, "malformed % escape")
	}
	u, err := pathURI(scheme, rest, s)
	if err != nil {
		return uri{}, err
	}
	for query != "" {
		var item string
		item, query, _ = strings.Cut(query, "&")
		if item == "" {
			continue
		}
		k, v, _ := strings.Cut(item, "=")
		key, ok1 := unescape(k, true)
		value, ok2 := unescape(v, true)
		if !ok1 || !ok2 {
			return uri{}, invalid(s, "malformed % escape")
		}
		u.query = append(u.query, pair{key, value})
	}
	return u, nil
}

func pathURI(scheme, path, whole string) (uri, error) {
	switch {
	case !strings.HasPrefix(path, "/"):
		return uri{}, invalid(whole, "the path is not absolute")
	case strings.IndexByte(path, 0) >= 0:
		return uri{}, invalid(whole, "the path holds a zero byte")
	}
	return uri{scheme: scheme, path: path}, nil
}

// unescape resolves %XX, and + where it stands for a space.
func unescape(s string, plus bool) (string, bool) {
	if strings.IndexByte(s, '%') < 0 && (!plus || strings.IndexByte(s, '+') < 0) {
		return s, true
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '%':
			if i+2 >= len(s) {
				return "", false
			}
			v, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return "", false
			}
			c = byte(v)
			i += 2
		case c == '+' && plus:
			c = ' '
		}
		b = append(b, c)
	}
	return string(b), true
}

// parseSize reads a number of bytes: plain, or with one of the units KiB, MiB,
// GiB (and Ki, Mi, Gi as Kubernetes writes them) or kB, MB, GB.
func parseSize(s string) (int64, bool) {
	unit := int64(1)
	for _, u := range [...]struct {
		suffix string
		bytes  int64
	}{
		{"KiB", 1 << 10},
		{"MiB", 1 << 20},
		{"GiB", 1 << 30},
		{"Ki", 1 << 10},
		{"Mi", 1 << 20},
		{"Gi", 1 << 30},
		{"kB", 1e3},
		{"KB", 1e3},
		{"MB", 1e6},
		{"GB", 1e9},
	} {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			s, unit = rest, u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return 0, false
	}
	return n * unit, true
}

func invalid(what, why string) error {
	return fault.New(fault.InvalidArgument, "stdio "+strconv.Quote(what)+": "+why)
}
