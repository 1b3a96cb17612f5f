// SPDX-License-Identifier: Apache-2.0

// Package systemd holds berth's units for systemd, which are files for those who
// install by hand and texts for `berth install`. Programs are in /usr/local/bin there.
package systemd

import _ "embed"

// Units of `berthd proxy`, by the names of their files.
const (
	ProxyServiceName = "berthd-proxy.service"
	ProxySocketName  = "berthd-proxy.socket"
)

// ProxyService is berthd-proxy.service.
//
//go:embed berthd-proxy.service
var ProxyService string

// ProxySocket is berthd-proxy.socket.
//
//go:embed berthd-proxy.socket
var ProxySocket string
