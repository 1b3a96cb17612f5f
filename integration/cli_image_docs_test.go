// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// heritage are all methods of CRI-O's ImageServer (in both its forms) and of moby's
// ImageService, with what stands beside them.
var heritage = strings.Fields(`
	GetImageService CompileRegexpsForPinnedImages FilterPinnedImage ImageBeingPulled
	ImageResult ImageCopyOptions CgroupPullConfiguration RegistryImageReference StorageTransport
	StorageImageID StorageImageID.Format StorageImageID.IDStringForOutOfProcessConsumptionOnly ParseStorageImageIDFromOutOfProcessData
	ErrCannotParseImageID ErrImageMultiplyTagged
	ImageServer.ListImages ImageServer.ImageStatusByID ImageServer.ImageStatusByName ImageServer.ImageStatus
	ImageServer.PrepareImage ImageServer.PullImage ImageServer.CanPull ImageServer.DeleteImage ImageServer.RemoveImage
	ImageServer.UntagImage ImageServer.GetStore ImageServer.HeuristicallyTryResolvingStringAsIDPrefix
	ImageServer.CandidatesForPotentiallyShortImageName ImageServer.ResolveNames ImageServer.UpdatePinnedImagesList

	NewService ImageServiceConfig
	ImageService.Changes ImageService.Children ImageService.Cleanup ImageService.CommitBuildStep ImageService.CommitImage
	ImageService.CountImages ImageService.CreateImage ImageService.CreateLayer ImageService.DistributionServices
	ImageService.ExportImage ImageService.GetContainerLayerSize ImageService.GetImage ImageService.GetImageAndReleasableLayer
	ImageService.GetImageManifest ImageService.GetLayerFolders ImageService.GetLayerMountID ImageService.ImageDelete
	ImageService.ImageHistory ImageService.Images ImageService.ImagesPrune ImageService.ImportImage ImageService.LayerDiskUsage
	ImageService.LayerStoreStatus ImageService.LoadImage ImageService.LogImageEvent ImageService.MakeImageCache
	ImageService.Mount ImageService.NewImageManifest ImageService.PerformWithBaseFS ImageService.PrepareSnapshot
	ImageService.PullImage ImageService.PushImage ImageService.ReleaseLayer ImageService.ResolveImage ImageService.SquashImage
	ImageService.StorageDriver ImageService.TagImage ImageService.Unmount ImageService.UpdateConfig
	ImageManifest ImageManifest.CheckContentAvailable ImageManifest.ImagePlatform ImageManifest.IsAttestation
	ImageManifest.IsPseudoImage ImageManifest.Manifest ImageManifest.Metadata
`)

// row is a line of a table: code in three cells, of which the last may be a dash.
var row = regexp.MustCompile("(?m)^\\| (`[^|]+) \\| (`[^|]+) \\| (`[^|]+|-) \\|$")

// inCode is what is marked as code in a cell.
var inCode = regexp.MustCompile("`([^`]+)`")

func marked(cell string) (words []string) {
	for _, m := range inCode.FindAllStringSubmatch(cell, -1) {
		words = append(words, m[1])
	}
	return words
}

// The table of docs/images.md has all that berth is heir to, and only what there is.
func TestImageTable(t *testing.T) {
	text, err := os.ReadFile("../docs/images.md")
	if err != nil {
		t.Fatal(err)
	}
	declared := declarations(t, "../images")
	missing := slices.Clone(heritage)
	var commands []string
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		for _, old := range marked(m[1]) {
			missing = slices.DeleteFunc(missing, func(name string) bool { return name == old })
		}
		for _, name := range marked(m[2]) {
			if !declared[name] {
				t.Errorf("%s: %s is not declared", strings.TrimSpace(m[1]), name)
			}
		}
		commands = append(commands, marked(m[3])...)
	}
	if len(missing) > 0 {
		t.Errorf("docs/images.md lacks %v", missing)
	}
	for _, m := range regexp.MustCompile(`(?m)^What is berth's own: (?s:.*?)\n\n?$`).FindAllString(string(text), -1) {
		for _, word := range marked(m) {
			if strings.HasPrefix(word, "berth ") {
				commands = append(commands, word)
			} else if !declared[word] {
				t.Errorf("%s is not declared", word)
			}
		}
	}
	forCLI(t, func(t *testing.T, c *cli) {
		slices.Sort(commands)
		for _, line := range slices.Compact(commands) {
			checkCommand(t, c, "docs/images.md", line)
		}
	})
}

// declarations are the exported names below a directory: those of its own package as
// Name and Type.Member, those of other packages with the package's name before them.
func declarations(t *testing.T, root string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		prefix := ""
		if filepath.Dir(path) != root {
			prefix = file.Name.Name + "."
		}
		for _, d := range file.Decls {
			for _, name := range declaredBy(d) {
				names[prefix+name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// declaredBy are the names of a declaration, a type's fields with it.
func declaredBy(d ast.Decl) (names []string) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil {
			return []string{d.Name.Name}
		}
		of := d.Recv.List[0].Type
		if star, ok := of.(*ast.StarExpr); ok {
			of = star.X
		}
		if name, ok := of.(*ast.Ident); ok {
			return []string{name.Name + "." + d.Name.Name}
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.ValueSpec:
				for _, name := range spec.Names {
					names = append(names, name.Name)
				}
			case *ast.TypeSpec:
				names = append(names, spec.Name.Name)
				if of, ok := spec.Type.(*ast.StructType); ok {
					for _, field := range of.Fields.List {
						for _, name := range field.Names {
							names = append(names, spec.Name.Name+"."+name.Name)
						}
					}
				}
			}
		}
	}
	return names
}
