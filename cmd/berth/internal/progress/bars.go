// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// bars are those on a terminal, in the order in which their parts came. Those that
// have ended go up and stay: there may be more than fit.
type bars struct {
	screen *mpb.Progress
	last   int // number of the last bar
}

// bar is one of them. What is beside it is read while the screen is drawn.
type bar struct {
	*mpb.Bar

	front, back atomic.Pointer[string]
}

func newBars(out io.Writer) *bars {
	return &bars{screen: mpb.New(mpb.WithOutput(out), mpb.WithAutoRefresh(), mpb.PopCompletedMode())}
}

func (b *bars) show(p *part) {
	if p.bar == nil {
		p.bar = b.add(p)
	}
	p.bar.describe(p)
	p.bar.SetTotal(p.Total, false)
	p.bar.SetCurrent(p.Done)
	if p.Ended {
		p.bar.SetTotal(-1, true)
	}
}

func (b *bars) add(p *part) *bar {
	added := &bar{}
	added.describe(p)
	b.last++
	added.Bar = b.screen.AddBar(0,
		mpb.BarPriority(b.last),
		mpb.BarFillerClearOnComplete(),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return *added.front.Load() })),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return *added.back.Load() })),
	)
	return added
}

func (b *bar) describe(p *part) {
	front, back := fmt.Sprintf("%-16s %-18s", p.Name, p.Status), fmt.Sprintf("%-32s", p.amount())
	b.front.Store(&front)
	b.back.Store(&back)
}

// end leaves what is on the screen there.
func (b *bars) end(parts map[string]*part) {
	for _, p := range parts {
		switch {
		case p.Ended:
		case p.Done >= p.Total:
			p.bar.SetTotal(-1, true)
		default:
			p.bar.Abort(false)
		}
	}
	b.screen.Wait()
}
