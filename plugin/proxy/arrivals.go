// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net"
	"sync"
)

// arrivals is a listener that knows whether the server has begun with each
// connection that it accepted. A gRPC server that is stopped before drops them, and
// who connected gets an error for a call that nobody has looked at.
type arrivals struct {
	net.Listener
	pending sync.WaitGroup // connections that nobody has read from
}

func (a *arrivals) Accept() (net.Conn, error) {
	c, err := a.Listener.Accept()
	if err != nil {
		return nil, err
	}
	a.pending.Add(1)
	return &arrival{Conn: c, begun: a.pending.Done}, nil
}

type arrival struct {
	net.Conn
	once  sync.Once
	begun func()
}

func (a *arrival) Read(b []byte) (int, error) {
	a.once.Do(a.begun)
	return a.Conn.Read(b)
}

func (a *arrival) Close() error {
	a.once.Do(a.begun)
	return a.Conn.Close()
}
