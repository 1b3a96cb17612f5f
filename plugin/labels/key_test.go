// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestKeysLiveHere: above the shim and the images, which may not import it, no
// package but this one knows a key.
func TestKeysLiveHere(t *testing.T) {
	ours := append([]string{keyManaged, keyLayerName, extMetadata, extIDMap}, schemaKeys...)
	theirs := []string{criPrefix + ".", annotationPrefix}
	for _, top := range []string{"..", "../../cmd"} {
		err := filepath.WalkDir(top, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			if filepath.Dir(name) == filepath.Join("..", "labels") {
				return nil
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				return nil // the build reports it
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					text, _ := strconv.Unquote(lit.Value)
					if slices.Contains(ours, text) || slices.ContainsFunc(theirs, func(p string) bool { return strings.HasPrefix(text, p) }) {
						t.Errorf("%s: %s is for plugin/labels to know", name, lit.Value)
					}
				}
				return true
			})
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}

// TestDocumentedSchema: the table in the package's comment has each key, and no
// other.
func TestDocumentedSchema(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	documented := regexp.MustCompile(`io\.(berth|kubernetes)\.[a-z.-]*[a-z]`).FindAllString(file.Doc.Text(), -1)
	known := append([]string{keyManaged, keyLayerName, extMetadata, extIDMap}, schemaKeys...)
	for _, key := range known {
		if !slices.Contains(documented, key) {
			t.Errorf("%s is not documented", key)
		}
	}
	for _, key := range documented {
		if !slices.Contains(known, key) {
			t.Errorf("%s is documented and unknown", key)
		}
	}
}
