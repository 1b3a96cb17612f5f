// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"reflect"
	"testing"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	sandbox "github.com/containerd/containerd/api/runtime/sandbox/v1"
	task "github.com/containerd/containerd/api/runtime/task/v2"
	runc "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// unknownFields are of every wire type and of numbers that no message has.
var unknownFields = []byte("\xc0\x3e\x05" + "\xc9\x3e12345678" + "\xd2\x3e\x02ab" + "\xdd\x3e1234")

// fresh returns a new message of m's type.
func fresh(m any) any { return reflect.New(reflect.TypeOf(m).Elem()).Interface() }

// laxer are messages with fields that our type leaves out: what is wrong inside
// these goes unseen.
var laxer = map[reflect.Type]bool{
	reflect.TypeFor[*Options]():         true,
	reflect.TypeFor[*BootstrapResult](): true,
	reflect.TypeFor[*Request]():         true,
}

// fuzz holds Decode against protobuf's: both refuse, or both accept and our
// message equals that of what protobuf writes again.
func fuzz(f *testing.F, ours decoder, theirs proto.Message) {
	for _, m := range messages {
		if reflect.TypeOf(m.ours) == reflect.TypeOf(ours) {
			b, err := proto.Marshal(m.want)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
			f.Add(append(b, unknownFields...))
			f.Add(b[:len(b)-1])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := fresh(ours).(decoder)
		err := got.Decode(b)
		want := theirs.ProtoReflect().New().Interface()
		wantErr := proto.Unmarshal(b, want)
		switch {
		case hasGroups(b, 0):
			return // refused by us alone
		case wantErr != nil && laxer[reflect.TypeOf(ours)]:
			return
		case (err == nil) != (wantErr == nil):
			t.Fatalf("we say %v, protobuf %v", err, wantErr)
		case err != nil:
			return
		}
		again, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		normal := fresh(ours).(decoder)
		if err := normal.Decode(again); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(canonical(got), canonical(normal)) {
			t.Errorf("got %+v, protobuf means %+v", got, normal)
		}
	})
}

// canonical makes messages comparable that mean the same: maps are unordered and
// their last entries win, empty values may be nil.
func canonical(m any) any {
	v := reflect.ValueOf(m).Elem()
	out := map[string]any{}
	for i := range v.NumField() {
		name, field := v.Type().Field(i).Name, v.Field(i).Interface()
		switch field := field.(type) {
		case []KeyValue:
			entries := map[string]string{}
			for _, e := range field {
				entries[e.Key] = e.Value
			}
			out[name] = entries
		case []byte:
			out[name] = string(field)
		case Any:
			out[name] = field.TypeURL + "\x00" + string(field.Value)
		case []Any:
			var texts []string
			for _, a := range field {
				texts = append(texts, a.TypeURL+"\x00"+string(a.Value))
			}
			out[name] = texts
		default:
			out[name] = field
		}
	}
	return out
}

// hasGroups tells whether b, or what may be a message in it, contains a group.
func hasGroups(b []byte, depth int) bool {
	for len(b) > 0 {
		_, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		if typ == protowire.StartGroupType || typ == protowire.EndGroupType {
			return true
		}
		b = b[n:]
		if typ == protowire.BytesType && depth < 4 {
			if v, n := protowire.ConsumeBytes(b); n >= 0 && hasGroups(v, depth+1) {
				return true
			}
		}
		n = protowire.ConsumeFieldValue(1, typ, b)
		if n < 0 {
			return false
		}
		b = b[n:]
	}
	return false
}

func FuzzCreateTaskRequest(f *testing.F) { fuzz(f, &CreateTaskRequest{}, &task.CreateTaskRequest{}) }
func FuzzStartRequest(f *testing.F)      { fuzz(f, &StartRequest{}, &task.StartRequest{}) }
func FuzzDeleteRequest(f *testing.F)     { fuzz(f, &DeleteRequest{}, &task.DeleteRequest{}) }
func FuzzExecProcessRequest(f *testing.F) {
	fuzz(f, &ExecProcessRequest{}, &task.ExecProcessRequest{})
}
func FuzzResizePtyRequest(f *testing.F) { fuzz(f, &ResizePtyRequest{}, &task.ResizePtyRequest{}) }
func FuzzStateRequest(f *testing.F)     { fuzz(f, &StateRequest{}, &task.StateRequest{}) }
func FuzzKillRequest(f *testing.F)      { fuzz(f, &KillRequest{}, &task.KillRequest{}) }
func FuzzCloseIORequest(f *testing.F)   { fuzz(f, &CloseIORequest{}, &task.CloseIORequest{}) }
func FuzzPidsRequest(f *testing.F)      { fuzz(f, &PidsRequest{}, &task.PidsRequest{}) }
func FuzzPauseRequest(f *testing.F)     { fuzz(f, &PauseRequest{}, &task.PauseRequest{}) }
func FuzzResumeRequest(f *testing.F)    { fuzz(f, &ResumeRequest{}, &task.ResumeRequest{}) }
func FuzzCheckpointTaskRequest(f *testing.F) {
	fuzz(f, &CheckpointTaskRequest{}, &task.CheckpointTaskRequest{})
}

func FuzzUpdateTaskRequest(f *testing.F) { fuzz(f, &UpdateTaskRequest{}, &task.UpdateTaskRequest{}) }
func FuzzWaitRequest(f *testing.F)       { fuzz(f, &WaitRequest{}, &task.WaitRequest{}) }
func FuzzStatsRequest(f *testing.F)      { fuzz(f, &StatsRequest{}, &task.StatsRequest{}) }
func FuzzConnectRequest(f *testing.F)    { fuzz(f, &ConnectRequest{}, &task.ConnectRequest{}) }
func FuzzShutdownRequest(f *testing.F)   { fuzz(f, &ShutdownRequest{}, &task.ShutdownRequest{}) }
func FuzzBootstrapParams(f *testing.F)   { fuzz(f, &BootstrapParams{}, &bootstrap.BootstrapParams{}) }

func FuzzBootstrapResult(f *testing.F)   { fuzz(f, &BootstrapResult{}, &bootstrap.BootstrapResult{}) }
func FuzzOptions(f *testing.F)           { fuzz(f, &Options{}, &runc.Options{}) }
func FuzzCheckpointOptions(f *testing.F) { fuzz(f, &CheckpointOptions{}, &runc.CheckpointOptions{}) }
func FuzzRuntimeOptions(f *testing.F)    { fuzz(f, &RuntimeOptions{}, &runtimeoptions.Options{}) }
func FuzzRequest(f *testing.F)           { fuzz(f, &Request{}, &ttrpc.Request{}) }

func FuzzCreateSandboxRequest(f *testing.F) {
	fuzz(f, &CreateSandboxRequest{}, &sandbox.CreateSandboxRequest{})
}
func FuzzSandboxRequest(f *testing.F) { fuzz(f, &SandboxRequest{}, &sandbox.StartSandboxRequest{}) }
func FuzzStopSandboxRequest(f *testing.F) {
	fuzz(f, &StopSandboxRequest{}, &sandbox.StopSandboxRequest{})
}

func FuzzSandboxStatusRequest(f *testing.F) {
	fuzz(f, &SandboxStatusRequest{}, &sandbox.SandboxStatusRequest{})
}
