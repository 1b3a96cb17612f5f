// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"

	"github.com/berthd/berth/shim/cgroup"
)

// RemoveCgroup removes the cgroup at path that was made with the pod in dir, unless
// another pod is in it, too: it would go under the hands of a runtime that makes a
// container there. It blocks.
func RemoveCgroup(dir, path string) error {
	if sharesCgroup(dir, path) {
		return nil
	}
	g, err := cgroup.At(path)
	if err != nil {
		return err
	}
	return g.Remove()
}

// sharesCgroup looks for the path in the records of the other pods of all
// namespaces. Theirs are the same program's, so it is written in the same way.
func sharesCgroup(dir, path string) bool {
	records, _ := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(dir)), "*", "*", RecordFile))
	for _, record := range records {
		if filepath.Dir(record) == dir {
			continue
		}
		text, _ := os.ReadFile(record) // it may just have gone
		if bytes.Contains(text, []byte(`"CgroupParent":`+strconv.Quote(path))) {
			return true
		}
	}
	return false
}
