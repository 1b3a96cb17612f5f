// SPDX-License-Identifier: Apache-2.0

package survey

import (
	"errors"
	"io"
)

// errAbandoned is what a Stream that is not written to its end ends with.
var errAbandoned = errors.New("layer was not read to its end")

// Stream is a survey of a layer that arrives: it is written to. Exactly one
// goroutine writes and closes it; Wait may be called by any.
type Stream struct {
	in     *io.PipeWriter
	done   chan struct{} // closed when what is below is set
	report Report
	err    error
}

// NewStream begins a survey by read, which is called once, in a goroutine that ends
// when the stream is closed. See Read for what it is to return.
func NewStream(read func(io.Reader) (Report, error)) *Stream {
	out, in := io.Pipe()
	s := &Stream{in: in, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.report, s.err = read(out)
		_ = out.CloseWithError(s.err) // or else the writer would wait
	}()
	return s
}

// Write gives the survey what has arrived. It blocks while the survey is behind.
// What is wrong with the layer is known by its error, which is that of Wait.
func (s *Stream) Write(p []byte) error {
	_, err := s.in.Write(p)
	if errors.Is(err, io.ErrClosedPipe) {
		return nil // it needs no more
	}
	return err
}

// Close says that the layer has been written as a whole.
func (s *Stream) Close() { _ = s.in.Close() }

// Abandon ends the survey without a result.
func (s *Stream) Abandon() { _ = s.in.CloseWithError(errAbandoned) }

// Wait returns what the survey found once the stream is closed. known is false for
// a stream that was abandoned.
func (s *Stream) Wait() (report Report, known bool, err error) {
	<-s.done
	if errors.Is(s.err, errAbandoned) {
		return Report{}, false, nil
	}
	return s.report, true, s.err
}
