// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"io"
	"net"

	"github.com/containerd/errdefs"
)

// The first byte of a packet of output says which it is; conmon's numbers.
const (
	markStdout = 2
	markStderr = 3
)

const (
	// maxPacket is more than a packet of output can have: data of 8192 bytes, the
	// most that the protocol allows, and the mark.
	maxPacket = 16 << 10
	// maxInput is the longest packet of input that a shim takes.
	maxInput = 32 << 10
)

// Connection is a client's of Attach: packets of output come in, marked by stream,
// and packets of input go out. One goroutine may read while another writes.
type Connection struct {
	conn *net.UnixConn
}

// Copy writes what the process prints to stdout and stderr, until the shim ends
// the connection: at the end of the process, or when this client was too slow. It
// returns nil then, and the writer's error if one fails.
func (c *Connection) Copy(stdout, stderr io.Writer) error {
	buffer := make([]byte, maxPacket)
	for {
		n, err := c.conn.Read(buffer)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("attached output: %w: %w", errdefs.ErrUnavailable, err)
		}
		to := stdout
		switch buffer[0] {
		case markStdout:
		case markStderr:
			to = stderr
		default:
			return fmt.Errorf("attached output: packet with mark %d: %w", buffer[0], errdefs.ErrDataLoss)
		}
		if to == nil {
			continue
		}
		if _, err := to.Write(buffer[1:n]); err != nil {
			return err
		}
	}
}

// Write sends input.
func (c *Connection) Write(p []byte) (int, error) {
	sent := 0
	for len(p) > 0 {
		n, err := c.conn.Write(p[:min(len(p), maxInput)])
		sent += n
		if err != nil {
			return sent, err
		}
		p = p[n:]
	}
	return sent, nil
}

// CloseWrite tells that there is no more input.
func (c *Connection) CloseWrite() error { return c.conn.CloseWrite() }

// Close ends the connection. The process goes on.
func (c *Connection) Close() error { return c.conn.Close() }
