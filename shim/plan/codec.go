// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"time"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/wire"
)

// DefaultCreateTimeout bounds the runtime's create when nothing is configured.
const DefaultCreateTimeout = 240 * time.Second

// fields shows every field of p with its number to c: one list for both
// directions, so that they cannot disagree.
func (p *Plan) fields(c codec) {
	c.text(1, &p.Namespace)
	c.text(2, &p.ID)
	c.text(3, &p.Bundle)
	c.text(4, &p.Work)
	c.text(5, &p.Socket)
	c.text(6, &p.Binary)
	c.text(7, &p.Address)
	c.text(8, &p.TTRPCAddress)
	c.text(9, &p.ContainerdBinary)
	number(c, 10, &p.LogLevel)
	c.flag(11, &p.Debug)
	c.text(12, &p.OptionsType)
	number(c, 13, &p.OptionsSum)

	c.text(20, &p.Runtime)
	c.text(21, &p.Root)
	c.flag(22, &p.Systemd)
	c.flag(23, &p.NoPivot)
	c.flag(24, &p.NoNewKeyring)
	c.text(25, &p.CriuImagePath)
	c.text(26, &p.CriuWorkPath)
	number(c, 27, &p.CreateTimeout)
	c.text(28, &p.ExecCPU)
	c.list(29, &p.MonitorEnv)
	c.flag(30, &p.Native)
	c.flag(31, &p.NativeStart)
	c.flag(32, &p.NativeDelete)

	c.flag(40, &p.SharedPidNS)
	c.flag(41, &p.Terminal)
	c.text(44, &p.SandboxID)
	c.text(48, &p.UsernsPath)
	c.flag(49, &p.Sandboxer)
	c.flag(33, &p.NoUnprivilegedPorts)
	c.flag(34, &p.NoUnprivilegedICMP)
	c.flag(35, &p.PodProcess)

	c.text(50, &p.ShimCgroup)
	c.text(51, &p.MonitorCgroup)
	number(c, 52, &p.HeapBoundBytes)

	number(c, 60, &p.IoUID)
	number(c, 61, &p.IoGID)
	c.flag(62, &p.Direct)
	number(c, 63, &p.SpoolMaxBytes)

	c.list(70, &p.LogDrivers)
	number(c, 71, &p.LogSizeMaxBytes)
	number(c, 72, &p.LogMaxFiles)
	number(c, 73, &p.LogGlobalMaxBytes)
	c.list(74, &p.LogLabels)
	c.text(75, &p.LogTag)
	c.list(76, &p.LogAllowedDirs)
	c.flag(77, &p.LogNoSync)

	c.text(90, &p.SeccompSocket)
	number(c, 91, &p.SeccompErrno)
	c.flag(92, &p.SeccompStop)

	c.text(80, &p.ExitDir)
	c.list(81, &p.ExitCommand)
	number(c, 82, &p.ExitDelay)
	number(c, 83, &p.OOMScore)
}

// codec is one direction of the encoding. Paths are bytes on Linux: texts are
// not checked to be UTF-8.
type codec interface {
	text(num int, s *string)
	list(num int, l *[]string)
	flag(num int, b *bool)
	integer(num int, v uint64) (uint64, bool) // the new value, when there is one
}

func number[T int32 | int64 | uint32 | uint64](c codec, num int, v *T) {
	if n, ok := c.integer(num, uint64(*v)); ok {
		*v = T(n)
	}
}

// Append appends the encoded plan to b.
func (p *Plan) Append(b []byte) []byte {
	e := encoder{b}
	p.fields(&e)
	return e.b
}

type encoder struct{ b []byte }

func (e *encoder) text(num int, s *string) {
	if *s != "" {
		e.b = wire.AppendBytes(e.b, num, []byte(*s))
	}
}

func (e *encoder) list(num int, l *[]string) {
	for _, s := range *l {
		e.b = wire.AppendBytes(e.b, num, []byte(s))
	}
}

func (e *encoder) flag(num int, v *bool) { e.b = wire.AppendBool(e.b, num, *v) }

func (e *encoder) integer(num int, v uint64) (uint64, bool) {
	e.b = wire.AppendVarint(e.b, num, v)
	return 0, false
}

// Decode replaces p by the plan encoded in b.
func (p *Plan) Decode(b []byte) error {
	*p = Plan{}
	s := wire.Scan(b)
	for d := (decoder{}); s.Next(&d.Field); {
		p.fields(&d)
	}
	return fault.In("plan", s.Err())
}

// decoder stores its one field where the number fits. Walking the list for
// every field is a few thousand steps, once in a process's life.
type decoder struct{ wire.Field }

func (d *decoder) text(num int, s *string) {
	if d.Num == num && d.Type == wire.Bytes {
		*s = string(d.Bytes)
	}
}

func (d *decoder) list(num int, l *[]string) {
	if d.Num == num && d.Type == wire.Bytes {
		*l = append(*l, string(d.Bytes))
	}
}

func (d *decoder) flag(num int, b *bool) {
	if d.Num == num && d.Type == wire.Varint {
		*b = d.Value != 0
	}
}

func (d *decoder) integer(num int, _ uint64) (uint64, bool) {
	return d.Value, d.Num == num && d.Type == wire.Varint
}
