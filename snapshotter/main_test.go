// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"fmt"
	"os"
	"testing"

	"github.com/berthd/berth/snapshotter/quota"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests mount: they need root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// needQuota skips a test where the file system of dir has no project quotas, but for
// the machine of `make vm-test`, which has: there the test fails.
func needQuota(t *testing.T, dir string) {
	t.Helper()
	fs, err := quota.Open(dir)
	switch {
	case err == nil:
		fs.Close()
	case os.Getenv("BERTH_TEST_QUOTA") != "":
		t.Fatal(err)
	default:
		t.Skipf("%v; see make vm-test", err)
	}
}

// unmountLayers closes a snapshotter and unmounts what its layers have mounted.
func unmountLayers(s *Snapshotter) error {
	if err := s.unmount(nil); err != nil {
		return err
	}
	return s.Close()
}
