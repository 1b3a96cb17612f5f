// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/websocket"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// Transport is how a caller reaches the streaming server.
type Transport int

// What containerd offers. WebSocket has no half-closed streams: the end of stdin
// is not handed on.
const (
	SPDY Transport = iota
	WebSocket
)

func (t Transport) String() string { return [...]string{"SPDY", "WebSocket"}[t] }

// Protocol versions: with exit codes as a status on the error stream, and for
// port forwarding over SPDY the only one there is.
const (
	protocolChannel = "v4.channel.k8s.io"
	protocolForward = "portforward.k8s.io"
)

// session is a connection of several streams to the streaming server.
type session interface {
	// open returns a stream by its kind.
	open(kind string) (io.ReadWriteCloser, error)
	Close() error
}

// command opens a session of exec or attach.
func (t Transport) command(ctx context.Context, at Server) (session, error) {
	if t == WebSocket {
		return dialWebSocket(ctx, at, 0, "stdin", "stdout", "stderr", "error", "resize")
	}
	return dialSPDY(ctx, at, protocolChannel, nil)
}

// forward opens a session that forwards one port.
func (t Transport) forward(ctx context.Context, at Server, port int) (session, error) {
	if t == WebSocket {
		// Each stream begins with the port it is for.
		at.URL += "?port=" + strconv.Itoa(port)
		return dialWebSocket(ctx, at, binary.Size(uint16(port)), "data", "error")
	}
	return dialSPDY(ctx, at, protocolForward, http.Header{"Port": {strconv.Itoa(port)}, "Requestid": {"0"}})
}

// spdySession is a session over SPDY. Its header goes with each stream.
type spdySession struct {
	httpstream.Connection
	header http.Header
}

func dialSPDY(ctx context.Context, at Server, protocol string, header http.Header) (session, error) {
	tripper, err := spdy.NewRoundTripper(at.TLS)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, at.URL, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	response, err := tripper.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	conn, err := tripper.NewConnection(response)
	if err != nil {
		return nil, err
	}
	return &spdySession{conn, header}, nil
}

func (s *spdySession) open(kind string) (io.ReadWriteCloser, error) {
	header := http.Header{"Streamtype": {kind}}
	maps.Copy(header, s.header)
	stream, err := s.CreateStream(header)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", kind, err)
	}
	return stream, nil
}

// webSocketSession is a session over one WebSocket: the first byte of a message
// is the number of its stream.
type webSocketSession struct {
	conn  *websocket.Conn
	kinds []string
	ends  []*io.PipeWriter // what arrives on each stream goes here
	outs  []*io.PipeReader

	mu sync.Mutex // of writing
}

// dialWebSocket opens a session whose streams are numbered in the order of kinds.
// Each begins with skip bytes that are not handed on.
func dialWebSocket(ctx context.Context, server Server, skip int, kinds ...string) (session, error) {
	at, err := url.Parse(server.URL)
	if err != nil {
		return nil, err
	}
	at.Scheme = strings.Replace(at.Scheme, "http", "ws", 1)
	config, err := websocket.NewConfig(at.String(), server.URL)
	if err != nil {
		return nil, err
	}
	config.TlsConfig = server.TLS
	config.Protocol = []string{protocolChannel}
	conn, err := config.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	s := &webSocketSession{conn: conn, kinds: kinds}
	for range kinds {
		out, end := io.Pipe()
		s.ends, s.outs = append(s.ends, end), append(s.outs, out)
	}
	go s.receive(slices.Repeat([]int{skip}, len(kinds)))
	return s, nil
}

// receive hands messages on until the connection ends, and with it every stream.
func (s *webSocketSession) receive(skip []int) {
	for {
		var message []byte
		err := websocket.Message.Receive(s.conn, &message)
		if err != nil {
			// The server closes the connection when it has sent everything.
			for _, end := range s.ends {
				_ = end.Close()
			}
			return
		}
		if len(message) == 0 || int(message[0]) >= len(s.ends) {
			continue
		}
		n, message := message[0], message[1:]
		skipped := min(skip[n], len(message))
		skip[n] -= skipped
		// Nobody may be reading any more.
		_, _ = s.ends[n].Write(message[skipped:])
	}
}

func (s *webSocketSession) open(kind string) (io.ReadWriteCloser, error) {
	n := slices.Index(s.kinds, kind)
	if n < 0 {
		return nil, fmt.Errorf("stream %s: none in this session", kind)
	}
	return &webSocketStream{PipeReader: s.outs[n], session: s, number: byte(n)}, nil
}

func (s *webSocketSession) Close() error {
	for _, out := range s.outs {
		_ = out.Close() // who writes to it must not wait for ever
	}
	return s.conn.Close()
}

// webSocketStream is one stream. It ends with its session.
type webSocketStream struct {
	*io.PipeReader
	session *webSocketSession
	number  byte
}

func (s *webSocketStream) Write(data []byte) (int, error) {
	s.session.mu.Lock()
	defer s.session.mu.Unlock()
	const piece = 32 << 10 // as kubectl sends it
	for part := range slices.Chunk(data, piece) {
		if err := websocket.Message.Send(s.session.conn, append([]byte{s.number}, part...)); err != nil {
			return 0, err
		}
	}
	return len(data), nil
}

// Close does nothing: there is no way to tell the other end.
func (s *webSocketStream) Close() error { return nil }
