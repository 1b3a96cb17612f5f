// SPDX-License-Identifier: Apache-2.0

// Package event publishes the shim's events to containerd: in order, bounded, and
// without ever holding up the event loop it runs on.
//
// containerd may be away, for a restart or for good; events then wait, the oldest
// being dropped when there are too many. An event is sent again when its answer
// was lost with the connection, so containerd may see it twice, but never out of
// order. The package knows nothing of what the events say.
package event

import (
	"slices"
	"time"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/ttrpc"
	"github.com/berthd/berth/shim/wire"
)

const (
	// maxQueue is how many events wait at most, as in containerd's own shims.
	maxQueue = 2048
	// maxRefusals is how often containerd may answer an event with an error before
	// it is dropped.
	maxRefusals = 5
	// minDelay and maxDelay bound the pause before the next try.
	minDelay = 50 * time.Millisecond
	maxDelay = time.Second
	// idleTime is how long a connection is kept for the next event.
	idleTime = 5 * time.Second
	// answerTime is a safety net only: a dead containerd closes the connection, and
	// one that is merely stopped or slow must not get the event twice.
	answerTime = 2 * time.Minute
)

// Publisher sends events to one containerd. It belongs to its loop.
type Publisher struct {
	loop      *loop.Loop
	address   string
	namespace string
	logf      func(format string, args ...any)

	queue   []item // the first one is in flight, or the next to be
	dropped int    // since the queue was last empty
	flushes []*flush

	client client
	retry  *loop.Timer // not nil: pausing
	delay  time.Duration
	away   bool // containerd did not take the last try
}

// item is an event to send.
type item struct {
	topic    string
	frame    []byte // the ttrpc request; its header is written when it is sent
	refusals int
}

// flush is a call of Flush that waits.
type flush struct {
	timer *loop.Timer
	done  func()
}

// New returns a publisher to containerd's ttrpc socket at the path address, or
// one that discards its events if that is empty. logf is called for an event that
// is dropped, and when containerd goes away and comes back.
func New(l *loop.Loop, address, namespace string, logf func(format string, args ...any)) *Publisher {
	p := &Publisher{loop: l, address: address, namespace: namespace, logf: logf}
	p.client = client{loop: l, fd: -1, answered: p.answered, lost: p.lost}
	return p
}

// Publish queues an event, whose encoding body is copied. The time of the event
// is now.
func (p *Publisher) Publish(topic, typeURL string, body []byte) {
	if p.address == "" {
		return
	}
	if len(p.queue) >= maxQueue {
		p.dropOldest()
	}
	p.queue = append(p.queue, item{topic: topic, frame: p.encode(topic, typeURL, body)})
	p.next()
}

// encode returns the ttrpc frame of a ForwardRequest.
func (p *Publisher) encode(topic, typeURL string, body []byte) []byte {
	m := wire.ForwardRequest{Envelope: wire.Envelope{
		Timestamp: time.Now().UnixNano(),
		Namespace: p.namespace,
		Topic:     topic,
		Event:     wire.Any{TypeURL: typeURL, Value: body},
	}}
	const names = len(wire.EventsService) + len(wire.ForwardMethod)
	room := names + len(p.namespace) + len(topic) + len(typeURL) + len(body) + 64
	b := make([]byte, ttrpc.HeaderBytes, ttrpc.HeaderBytes+room)
	b = wire.AppendString(b, 1, wire.EventsService)
	b = wire.AppendString(b, 2, wire.ForwardMethod)
	b = wire.AppendTag(b, 3, wire.Bytes)
	mark := wire.Begin(b)
	return wire.End(m.Append(b), mark)
}

// dropOldest makes room. The event in flight is spared: it may be done already.
func (p *Publisher) dropOldest() {
	i := 0
	if p.client.busy {
		i = 1
	}
	if p.dropped == 0 {
		p.logf("more than %d events wait for containerd: dropping the oldest, %s first", maxQueue, p.queue[i].topic)
	}
	p.dropped++
	p.queue = slices.Delete(p.queue, i, i+1)
}

// Pending returns the number of events that containerd has not taken.
func (p *Publisher) Pending() int { return len(p.queue) }

// Flush calls done once no event is pending, at once if that is so already, or
// when the time limit has passed. It does not wait out a pause between two tries.
func (p *Publisher) Flush(limit time.Duration, done func()) {
	if len(p.queue) == 0 {
		done()
		return
	}
	f := &flush{done: done}
	f.timer = p.loop.After(limit, func() {
		p.flushes = slices.DeleteFunc(p.flushes, func(other *flush) bool { return other == f })
		done()
	})
	p.flushes = append(p.flushes, f)
	if p.retry != nil {
		p.resume()
	}
}

// next sends the first event of the queue, if it is time to.
func (p *Publisher) next() {
	switch {
	case len(p.queue) == 0:
		p.empty()
	case p.client.busy || p.retry != nil:
	default:
		p.client.send(p.address, p.queue[0].frame)
	}
}

// empty is reached when all events are with containerd.
func (p *Publisher) empty() {
	if p.dropped > 0 {
		p.logf("%d events were dropped", p.dropped)
		p.dropped = 0
	}
	p.queue = nil // it may have grown
	flushes := p.flushes
	p.flushes = nil
	for _, f := range flushes {
		f.timer.Stop()
		f.done()
	}
}

// answered is called by the client with the answer to the event in flight.
func (p *Publisher) answered(m *wire.Response) {
	first := &p.queue[0]
	switch m.Code {
	case fault.OK:
		if p.away {
			p.logf("containerd takes events again: %d wait", len(p.queue))
			p.away = false
		}
		p.pop()
	case fault.Canceled, fault.Unavailable:
		// It is about to end: what answers next is its successor.
		p.pause()
	default:
		if first.refusals++; first.refusals < maxRefusals {
			p.pause()
			return
		}
		p.logf("containerd refused %s: %s: dropped", first.topic, m.Message)
		p.pop()
	}
}

func (p *Publisher) pop() {
	p.queue = slices.Delete(p.queue, 0, 1)
	p.delay = 0
	p.next()
}

// lost is called by the client when containerd could not be reached, or went away
// before it answered.
func (p *Publisher) lost(err error) {
	if !p.away {
		p.logf("containerd is away, events wait: %v", err)
		p.away = true
	}
	p.pause()
}

// pause puts the next try off.
func (p *Publisher) pause() {
	p.delay = min(max(2*p.delay, minDelay), maxDelay)
	p.retry = p.loop.After(p.delay, p.resume)
}

func (p *Publisher) resume() {
	p.retry.Stop()
	p.retry = nil
	p.next()
}
