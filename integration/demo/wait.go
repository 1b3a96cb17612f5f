// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"time"
)

// freeAddress is a port of loopback that nobody listens on now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// poll calls f until it succeeds; when ctx ends it returns f's last error.
func poll[T any](ctx context.Context, f func() (T, error)) (T, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		value, err := f()
		if err == nil {
			return value, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return value, err
		}
	}
}
