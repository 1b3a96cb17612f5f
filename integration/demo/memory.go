// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/berthd/berth/integration/host"
)

// memory is what a process costs, in bytes: what it alone has written, and its
// fair share of all it has in memory.
type memory struct{ private, pss int }

// compareMemory shows what n idle containers' shims cost, containerd's own and
// the one shown.
func (d *demo) compareMemory(ctx context.Context, n int) error {
	img, err := d.client.GetImage(ctx, host.Busybox)
	if err != nil {
		return err
	}
	stock, err := d.idleMemory(ctx, img, host.Stock.Name, n)
	if err != nil {
		return err
	}
	ours, err := d.idleMemory(ctx, img, d.runtime, n)
	if err != nil {
		return err
	}
	heading("Memory of the shim, mean of %d idle containers", n)
	fmt.Printf("  %-24s %9s %9s\n", "", "private", "pss")
	fmt.Printf("  %-24s %6d kB %6d kB\n", host.Stock.Name, stock.private>>10, stock.pss>>10)
	fmt.Printf("  %-24s %6d kB %6d kB\n", d.runtime, ours.private>>10, ours.pss>>10)
	fmt.Printf("  %-24s %7.0f %% %7.0f %%\n", "ratio",
		100*float64(ours.private)/float64(stock.private), 100*float64(ours.pss)/float64(stock.pss))
	return nil
}

func (d *demo) idleMemory(ctx context.Context, img client.Image, runtime string, n int) (mean memory, err error) {
	containers := make([]*container, 0, n)
	defer func() {
		for _, c := range containers {
			err = errors.Join(err, c.remove(ctx))
		}
	}()
	for i := range n {
		c, err := d.start(ctx, runtime, fmt.Sprintf("demo-memory-%d", i), img, cio.NullIO,
			oci.WithProcessArgs("sleep", "1000"))
		if err != nil {
			return memory{}, err
		}
		containers = append(containers, c)
	}
	for _, c := range containers {
		// The container is the child of its shim.
		shim, err := parent(int(c.task.Pid()))
		if err != nil {
			return memory{}, err
		}
		m, err := readMemory(shim)
		if err != nil {
			return memory{}, err
		}
		mean.private += m.private / n
		mean.pss += m.pss / n
	}
	return mean, nil
}

func parent(pid int) (int, error) {
	return number(fmt.Sprintf("/proc/%d/status", pid), "PPid:")
}

func readMemory(pid int) (memory, error) {
	path := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
	private, err := number(path, "Private_Dirty:")
	if err != nil {
		return memory{}, err
	}
	pss, err := number(path, "Pss:")
	if err != nil {
		return memory{}, err
	}
	return memory{private: private << 10, pss: pss << 10}, nil
}

// number is the first number on the line of a /proc file that starts with key.
func number(path, key string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == key {
			return strconv.Atoi(fields[1])
		}
	}
	return 0, fmt.Errorf("%s: no %s", path, key)
}
