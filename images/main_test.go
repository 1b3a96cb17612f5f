// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/berthd/berth/integration/host"
)

// The tests drive a real containerd and a real registry. Numbers in comments are
// acceptance statements of the image service.

func TestMain(m *testing.M) {
	host.EnterOffline()
	code := m.Run()
	if err := closeShared(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}
