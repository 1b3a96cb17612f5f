// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"bytes"
	"encoding/json"

	"github.com/containerd/typeurl/v2"
)

// SpecAnnotations are the annotations that containerd's CRI plugin would give the
// runtime specification: shims, hooks and NRI plugins read them. Unlike its labels
// they do not make CRI adopt the container.
func (m Metadata) SpecAnnotations() map[string]string {
	a := map[string]string{
		AnnotationSandboxID: m.Pod.ID,
		annotationPodName:   m.Pod.Name,
		annotationNamespace: m.Pod.Namespace,
		annotationUID:       m.Pod.UID,
	}
	if m.Kind == KindInfra {
		a[AnnotationContainerType] = criKindSandbox
		a[annotationLogDir] = m.Settings.LogDirectory
		return a
	}
	a[AnnotationContainerType] = kindContainer
	a[annotationContainer] = first(m.MetadataName, m.Name)
	a[annotationImage] = m.ImageName
	return a
}

// annotation finds one in a runtime specification, "" if there is none. It is done
// for each record of a listing, and decoding a specification takes a hundred times
// longer than looking for the key; in compact JSON, quotes with a colon after them
// are a key, and no other object of a specification has keys like CRI's.
func annotation(spec typeurl.Any, key string) string {
	if spec == nil {
		return ""
	}
	for rest := spec.GetValue(); ; {
		_, after, found := bytes.Cut(rest, []byte(`"`+key+`"`))
		if !found {
			return ""
		}
		if value, isKey := bytes.CutPrefix(bytes.TrimLeft(after, " \t\r\n"), []byte(":")); isKey {
			var s string
			if json.NewDecoder(bytes.NewReader(value)).Decode(&s) == nil {
				return s
			}
		}
		rest = after
	}
}
