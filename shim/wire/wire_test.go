// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"math"
	"testing"

	events "github.com/containerd/containerd/api/events"
	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	sandbox "github.com/containerd/containerd/api/runtime/sandbox/v1"
	task "github.com/containerd/containerd/api/runtime/task/v2"
	forward "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	runc "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	status "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/shim/fault"
)

type (
	appender interface{ Append([]byte) []byte }
	decoder  interface{ Decode([]byte) error }
)

func stamp(ns int64) *timestamppb.Timestamp {
	return &timestamppb.Timestamp{Seconds: ns / 1e9, Nanos: int32(ns % 1e9)}
}

func protoAny(a Any) *anypb.Any { return &anypb.Any{TypeUrl: a.TypeURL, Value: a.Value} }

const when = 1_700_000_000_123_456_789

var (
	anyA    = Any{TypeURL: "example.A", Value: []byte("{\"a\":1}")}
	anyB    = Any{TypeURL: "example.B", Value: []byte{0, 1, 2, 0xff}}
	mounts  = []Mount{{Type: "overlay", Source: "overlay", Target: "/t", Options: []string{"lowerdir=/a:/b", "", "ro"}}, {}}
	pmounts = []*types.Mount{{Type: "overlay", Source: "overlay", Target: "/t", Options: []string{"lowerdir=/a:/b", "", "ro"}}, {}}
)

// messages pairs each of our messages, every field set, with containerd's.
var messages = []struct {
	ours any
	want proto.Message
}{
	{
		&CreateTaskRequest{ID: "id", Bundle: "/b", Rootfs: mounts, Terminal: true, Stdin: "in", Stdout: "out", Stderr: "err", Checkpoint: "/c", ParentCheckpoint: "/p", Options: anyA},
		&task.CreateTaskRequest{ID: "id", Bundle: "/b", Rootfs: pmounts, Terminal: true, Stdin: "in", Stdout: "out", Stderr: "err", Checkpoint: "/c", ParentCheckpoint: "/p", Options: protoAny(anyA)},
	},
	{&CreateTaskResponse{Pid: 1 << 31}, &task.CreateTaskResponse{Pid: 1 << 31}},
	{&StartRequest{ID: "id", ExecID: "e"}, &task.StartRequest{ID: "id", ExecID: "e"}},
	{&StartResponse{Pid: 300}, &task.StartResponse{Pid: 300}},
	{&DeleteRequest{ID: "id", ExecID: "e"}, &task.DeleteRequest{ID: "id", ExecID: "e"}},
	{&DeleteResponse{Pid: 1, ExitStatus: 137, ExitedAt: when}, &task.DeleteResponse{Pid: 1, ExitStatus: 137, ExitedAt: stamp(when)}},
	{
		&ExecProcessRequest{ID: "id", ExecID: "e", Terminal: true, Stdin: "in", Stdout: "out", Stderr: "err", Spec: anyA},
		&task.ExecProcessRequest{ID: "id", ExecID: "e", Terminal: true, Stdin: "in", Stdout: "out", Stderr: "err", Spec: protoAny(anyA)},
	},
	{&ResizePtyRequest{ID: "id", ExecID: "e", Width: 80, Height: 1 << 20}, &task.ResizePtyRequest{ID: "id", ExecID: "e", Width: 80, Height: 1 << 20}},
	{&StateRequest{ID: "id", ExecID: "e"}, &task.StateRequest{ID: "id", ExecID: "e"}},
	{
		&StateResponse{ID: "id", Bundle: "/b", Pid: 5, Status: StatusPausing, Stdin: "in", Stdout: "out", Stderr: "err", Terminal: true, ExitStatus: 255, ExitedAt: when, ExecID: "e"},
		&task.StateResponse{ID: "id", Bundle: "/b", Pid: 5, Status: status.Status_PAUSING, Stdin: "in", Stdout: "out", Stderr: "err", Terminal: true, ExitStatus: 255, ExitedAt: stamp(when), ExecID: "e"},
	},
	{&KillRequest{ID: "id", ExecID: "e", Signal: 9, All: true}, &task.KillRequest{ID: "id", ExecID: "e", Signal: 9, All: true}},
	{&CloseIORequest{ID: "id", ExecID: "e", Stdin: true}, &task.CloseIORequest{ID: "id", ExecID: "e", Stdin: true}},
	{&PidsRequest{ID: "id"}, &task.PidsRequest{ID: "id"}},
	{
		&PidsResponse{Processes: []ProcessInfo{{Pid: 1}, {Pid: 2, Info: anyB}, {}}},
		&task.PidsResponse{Processes: []*status.ProcessInfo{{Pid: 1}, {Pid: 2, Info: protoAny(anyB)}, {}}},
	},
	{&PauseRequest{ID: "id"}, &task.PauseRequest{ID: "id"}},
	{&ResumeRequest{ID: "id"}, &task.ResumeRequest{ID: "id"}},
	{&CheckpointTaskRequest{ID: "id", Path: "/p", Options: anyB}, &task.CheckpointTaskRequest{ID: "id", Path: "/p", Options: protoAny(anyB)}},
	{
		&UpdateTaskRequest{ID: "id", Resources: anyA, Annotations: []KeyValue{{"k", "v"}}},
		&task.UpdateTaskRequest{ID: "id", Resources: protoAny(anyA), Annotations: map[string]string{"k": "v"}},
	},
	{&WaitRequest{ID: "id", ExecID: "e"}, &task.WaitRequest{ID: "id", ExecID: "e"}},
	{&WaitResponse{ExitStatus: 1, ExitedAt: when}, &task.WaitResponse{ExitStatus: 1, ExitedAt: stamp(when)}},
	{&StatsRequest{ID: "id"}, &task.StatsRequest{ID: "id"}},
	{&StatsResponse{Stats: anyB}, &task.StatsResponse{Stats: protoAny(anyB)}},
	{&ConnectRequest{ID: "id"}, &task.ConnectRequest{ID: "id"}},
	{&ConnectResponse{ShimPid: 1, TaskPid: 2, Version: "v"}, &task.ConnectResponse{ShimPid: 1, TaskPid: 2, Version: "v"}},
	{&ShutdownRequest{ID: "id", Now: true}, &task.ShutdownRequest{ID: "id", Now: true}},

	{
		&TaskCreate{ContainerID: "c", Bundle: "/b", Rootfs: mounts, IO: TaskIO{Stdin: "in", Stdout: "out", Stderr: "err", Terminal: true}, Checkpoint: "/c", Pid: 3},
		&events.TaskCreate{ContainerID: "c", Bundle: "/b", Rootfs: pmounts, IO: &events.TaskIO{Stdin: "in", Stdout: "out", Stderr: "err", Terminal: true}, Checkpoint: "/c", Pid: 3},
	},
	{&TaskStart{ContainerID: "c", Pid: 3}, &events.TaskStart{ContainerID: "c", Pid: 3}},
	{
		&TaskDelete{ContainerID: "c", Pid: 3, ExitStatus: 4, ExitedAt: when, ID: "i"},
		&events.TaskDelete{ContainerID: "c", Pid: 3, ExitStatus: 4, ExitedAt: stamp(when), ID: "i"},
	},
	{
		&TaskExit{ContainerID: "c", ID: "i", Pid: 3, ExitStatus: 4, ExitedAt: when},
		&events.TaskExit{ContainerID: "c", ID: "i", Pid: 3, ExitStatus: 4, ExitedAt: stamp(when)},
	},
	{&TaskOOM{ContainerID: "c"}, &events.TaskOOM{ContainerID: "c"}},
	{&TaskExecAdded{ContainerID: "c", ExecID: "e"}, &events.TaskExecAdded{ContainerID: "c", ExecID: "e"}},
	{&TaskExecStarted{ContainerID: "c", ExecID: "e", Pid: 1}, &events.TaskExecStarted{ContainerID: "c", ExecID: "e", Pid: 1}},
	{&TaskPaused{ContainerID: "c"}, &events.TaskPaused{ContainerID: "c"}},
	{&TaskResumed{ContainerID: "c"}, &events.TaskResumed{ContainerID: "c"}},
	{&TaskCheckpointed{ContainerID: "c", Checkpoint: "/p"}, &events.TaskCheckpointed{ContainerID: "c", Checkpoint: "/p"}},
	{
		&ForwardRequest{Envelope{Timestamp: when, Namespace: "n", Topic: "/t", Event: anyB}},
		&forward.ForwardRequest{Envelope: &types.Envelope{Timestamp: stamp(when), Namespace: "n", Topic: "/t", Event: protoAny(anyB)}},
	},

	{
		&Options{NoPivotRoot: true, NoNewKeyring: true, ShimCgroup: "/s", IoUID: 1, IoGID: 2, BinaryName: "runc", Root: "/r", SystemdCgroup: true, CriuImagePath: "/i", CriuWorkPath: "/w"},
		&runc.Options{NoPivotRoot: true, NoNewKeyring: true, ShimCgroup: "/s", IoUid: 1, IoGid: 2, BinaryName: "runc", Root: "/r", SystemdCgroup: true, CriuImagePath: "/i", CriuWorkPath: "/w"},
	},
	{
		&CheckpointOptions{Exit: true, OpenTCP: true, ExternalUnixSockets: true, Terminal: true, FileLocks: true, EmptyNamespaces: []string{"network", ""}, CgroupsMode: "soft", ImagePath: "/i", WorkPath: "/w", ParentPath: "/p"},
		&runc.CheckpointOptions{Exit: true, OpenTcp: true, ExternalUnixSockets: true, Terminal: true, FileLocks: true, EmptyNamespaces: []string{"network", ""}, CgroupsMode: "soft", ImagePath: "/i", WorkPath: "/w", ParentPath: "/p"},
	},
	{&ProcessDetails{ExecID: "e"}, &runc.ProcessDetails{ExecID: "e"}},
	{
		&RuntimeOptions{TypeURL: "t", ConfigPath: "/p", ConfigBody: []byte("a = 1\n")},
		&runtimeoptions.Options{TypeUrl: "t", ConfigPath: "/p", ConfigBody: []byte("a = 1\n")},
	},

	{
		&BootstrapParams{InstanceID: "i", Namespace: "n", LogLevel: LogLevelDebug, ContainerdVersion: "2.4", ContainerdTtrpcAddress: "/t", ContainerdGrpcAddress: "/g", ContainerdBinary: "/c", Extensions: []Any{anyA, {}}, SocketDir: "/s"},
		&bootstrap.BootstrapParams{InstanceID: "i", Namespace: "n", LogLevel: bootstrap.LogLevel_LOG_LEVEL_DEBUG, ContainerdVersion: "2.4", ContainerdTtrpcAddress: "/t", ContainerdGrpcAddress: "/g", ContainerdBinary: "/c", Extensions: []*bootstrap.Extension{{Value: protoAny(anyA)}, {}}, SocketDir: new("/s")},
	},
	{
		&BootstrapResult{Version: 2, Address: "unix:///a", Protocol: "ttrpc", Metadata: []KeyValue{{"k", "v"}}, Extensions: []Any{anyB}},
		&bootstrap.BootstrapResult{Version: 2, Address: "unix:///a", Protocol: "ttrpc", Metadata: map[string]string{"k": "v"}, Extensions: []*bootstrap.Extension{{Value: protoAny(anyB)}}},
	},
	{
		&RuntimeInfo{Name: "n", Version: RuntimeVersion{Version: "1", Revision: "r"}, Options: anyA, Features: anyB, Annotations: []KeyValue{{"k", ""}, {"l", "v"}}},
		&types.RuntimeInfo{Name: "n", Version: &types.RuntimeVersion{Version: "1", Revision: "r"}, Options: protoAny(anyA), Features: protoAny(anyB), Annotations: map[string]string{"k": "", "l": "v"}},
	},

	{
		&Request{Service: []byte("s"), Method: []byte("m"), Payload: []byte{1, 0}, TimeoutNano: -5},
		&ttrpc.Request{Service: "s", Method: "m", Payload: []byte{1, 0}, TimeoutNano: -5},
	},
	{
		&Response{Code: fault.NotFound, Message: "no", Payload: []byte{1}},
		&ttrpc.Response{Status: &spb.Status{Code: 5, Message: "no"}, Payload: []byte{1}},
	},
	{
		&CreateSandboxRequest{SandboxID: "id", BundlePath: "/b", Rootfs: mounts, Options: anyA, NetnsPath: "/n", Annotations: []KeyValue{{"k", "v"}}},
		&sandbox.CreateSandboxRequest{SandboxID: "id", BundlePath: "/b", Rootfs: pmounts, Options: protoAny(anyA), NetnsPath: "/n", Annotations: map[string]string{"k": "v"}},
	},
	{&SandboxRequest{SandboxID: "id"}, &sandbox.StartSandboxRequest{SandboxID: "id"}},
	{&SandboxRequest{SandboxID: "id"}, &sandbox.PlatformRequest{SandboxID: "id"}},
	{&SandboxRequest{SandboxID: "id"}, &sandbox.WaitSandboxRequest{SandboxID: "id"}},
	{&SandboxRequest{SandboxID: "id"}, &sandbox.PingRequest{SandboxID: "id"}},
	{&SandboxRequest{SandboxID: "id"}, &sandbox.ShutdownSandboxRequest{SandboxID: "id"}},
	{&SandboxRequest{SandboxID: "id"}, &sandbox.SandboxMetricsRequest{SandboxID: "id"}},
	{&StopSandboxRequest{SandboxID: "id", TimeoutSecs: 1 << 31}, &sandbox.StopSandboxRequest{SandboxID: "id", TimeoutSecs: 1 << 31}},
	{&SandboxStatusRequest{SandboxID: "id", Verbose: true}, &sandbox.SandboxStatusRequest{SandboxID: "id", Verbose: true}},
	{
		&StartSandboxResponse{Pid: 1, CreatedAt: when, Spec: anyA},
		&sandbox.StartSandboxResponse{Pid: 1, CreatedAt: stamp(when), Spec: protoAny(anyA)},
	},
	{
		&PlatformResponse{Platform{OS: "linux", Architecture: "arm", Variant: "v7"}},
		&sandbox.PlatformResponse{Platform: &types.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}},
	},
	{&WaitSandboxResponse{ExitStatus: 137, ExitedAt: when}, &sandbox.WaitSandboxResponse{ExitStatus: 137, ExitedAt: stamp(when)}},
	{
		&SandboxStatusResponse{SandboxID: "id", Pid: 2, State: SandboxReady, Info: []KeyValue{{"info", "{}"}}, CreatedAt: when, ExitedAt: when + 1, Extra: anyB},
		&sandbox.SandboxStatusResponse{SandboxID: "id", Pid: 2, State: "SANDBOX_READY", Info: map[string]string{"info": "{}"}, CreatedAt: stamp(when), ExitedAt: stamp(when + 1), Extra: protoAny(anyB)},
	},
	{&mounts[0], pmounts[0]},
	{&anyA, protoAny(anyA)},
}

func nameOf(m proto.Message) string { return string(m.ProtoReflect().Descriptor().FullName()) }

func TestAppend(t *testing.T) {
	for _, m := range messages {
		ours, ok := m.ours.(appender)
		if !ok {
			continue
		}
		got := m.want.ProtoReflect().New().Interface()
		b := ours.Append([]byte("front"))
		if string(b[:5]) != "front" {
			t.Errorf("%s: what stood before is lost", nameOf(m.want))
		}
		if err := proto.Unmarshal(b[5:], got); err != nil {
			t.Errorf("%s: %v", nameOf(m.want), err)
		}
		if d := cmp.Diff(m.want, got, protocmp.Transform()); d != "" {
			t.Errorf("%s: %s", nameOf(m.want), d)
		}
	}
}

func TestDecode(t *testing.T) {
	for _, m := range messages {
		got, ok := fresh(m.ours).(decoder)
		if !ok {
			continue
		}
		b, err := proto.Marshal(m.want)
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, unknownFields...)
		for range 2 { // the second time into a used message
			if err := got.Decode(b); err != nil {
				t.Errorf("%s: %v", nameOf(m.want), err)
			}
			if d := cmp.Diff(m.ours, got); d != "" {
				t.Errorf("%s: %s", nameOf(m.want), d)
			}
		}
		if err := got.Decode(nil); err != nil {
			t.Errorf("%s, empty: %v", nameOf(m.want), err)
		}
		if d := cmp.Diff(fresh(m.ours), any(got)); d != "" {
			t.Errorf("%s: fields survive the next Decode: %s", nameOf(m.want), d)
		}
	}
}

// Every message decodes or appends, and most fields of containerd's are set, so
// that the table cannot silently fall behind the API.
func TestTableIsComplete(t *testing.T) {
	left := map[string]bool{
		"containerd.runc.v1.Options.task_api_address":                  true,
		"containerd.runc.v1.Options.task_api_version":                  true,
		"containerd.runtime.bootstrap.v1.BootstrapResult.capabilities": true,
		"ttrpc.Request.metadata":                                       true,
	}
	for _, m := range messages {
		fields := m.want.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			if !m.want.ProtoReflect().Has(f) && !left[string(f.FullName())] {
				t.Errorf("%s is not tested", f.FullName())
			}
		}
	}
	have := map[string]bool{
		"google.protobuf.Empty": true,
		// Without fields, or none that is looked at.
		"containerd.runtime.sandbox.v1.CreateSandboxResponse":   true,
		"containerd.runtime.sandbox.v1.StopSandboxResponse":     true,
		"containerd.runtime.sandbox.v1.PingResponse":            true,
		"containerd.runtime.sandbox.v1.ShutdownSandboxResponse": true,
		"containerd.runtime.sandbox.v1.UpdateSandboxRequest":    true,
		"containerd.runtime.sandbox.v1.UpdateSandboxResponse":   true,
		"containerd.runtime.sandbox.v1.SandboxMetricsResponse":  true, // TestSandboxMetrics
	}
	for _, m := range messages {
		have[nameOf(m.want)] = true
	}
	for _, file := range []protoreflect.FileDescriptor{task.File_runtime_task_v2_shim_proto, sandbox.File_runtime_sandbox_v1_sandbox_proto} {
		methods := file.Services().Get(0).Methods()
		for i := range methods.Len() {
			for _, d := range []string{string(methods.Get(i).Input().FullName()), string(methods.Get(i).Output().FullName())} {
				if !have[d] {
					t.Errorf("%s is missing", d)
				}
			}
		}
	}
}

func TestNames(t *testing.T) {
	url := func(m any) string {
		u, err := typeurl.TypeURL(m)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	for _, c := range []struct{ got, want string }{
		{OptionsURL, url(&runc.Options{})},
		{CheckpointOptionsURL, url(&runc.CheckpointOptions{})},
		{ProcessDetailsURL, url(&runc.ProcessDetails{})},
		{RuntimeOptionsURL, url(&runtimeoptions.Options{})},
		{SandboxService, string(sandbox.File_runtime_sandbox_v1_sandbox_proto.Services().Get(0).FullName())},
		{TaskService, string(task.File_runtime_task_v2_shim_proto.Services().Get(0).FullName())},
		{EventsService, string(forward.File_services_ttrpc_events_v1_events_proto.Services().Get(0).FullName())},
		{ForwardMethod, string(forward.File_services_ttrpc_events_v1_events_proto.Services().Get(0).Methods().Get(0).Name())},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
	topics := map[string]bool{}
	for _, m := range messages {
		if e, ok := m.ours.(Event); ok {
			topics[e.Topic()] = true
			if e.TypeURL() != url(m.want) {
				t.Errorf("got %q, want %q", e.TypeURL(), url(m.want))
			}
		}
	}
	if len(topics) != 10 {
		t.Errorf("topics: %v", topics)
	}
}

func TestAnyIs(t *testing.T) {
	for url, want := range map[string]bool{
		OptionsURL:                          true,
		"type.googleapis.com/" + OptionsURL: true,
		"x" + OptionsURL:                    false,
		"":                                  false,
		"/":                                 false,
		OptionsURL + "/":                    false,
	} {
		if got := (&Any{TypeURL: url}).Is(OptionsURL); got != want {
			t.Errorf("%q: %v", url, got)
		}
	}
}

func TestStats(t *testing.T) {
	b, err := AppendStats(nil, "u", func(b []byte) ([]byte, error) { return AppendVarint(b, 1, 5), nil })
	if err != nil {
		t.Fatal(err)
	}
	want := (&StatsResponse{Any{TypeURL: "u", Value: []byte{8, 5}}}).Append(nil)
	if d := cmp.Diff(want, b); d != "" {
		t.Error(d)
	}
	gone := fault.New(fault.NotFound, "gone")
	if _, err := AppendStats(nil, "u", func(b []byte) ([]byte, error) { return b, gone }); err != gone {
		t.Errorf("got %v", err)
	}
}

func TestSandboxMetrics(t *testing.T) {
	b, err := AppendSandboxMetrics(nil, "id", when, "u", func(b []byte) ([]byte, error) { return AppendVarint(b, 1, 5), nil })
	if err != nil {
		t.Fatal(err)
	}
	want := &sandbox.SandboxMetricsResponse{Metrics: &types.Metric{
		Timestamp: stamp(when), ID: "id", Data: protoAny(Any{TypeURL: "u", Value: []byte{8, 5}}),
	}}
	got := &sandbox.SandboxMetricsResponse{}
	if err := proto.Unmarshal(b, got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Error(d)
	}
	gone := fault.New(fault.NotFound, "gone")
	if _, err := AppendSandboxMetrics(nil, "id", when, "u", func(b []byte) ([]byte, error) { return b, gone }); err != gone {
		t.Errorf("got %v", err)
	}
}

func TestTimes(t *testing.T) {
	for _, ns := range []int64{1, -1, -1_000_000_001, when, math.MaxInt64 - 4e9, math.MinInt64 + 4e9} {
		var back DeleteResponse
		b := (&DeleteResponse{ExitedAt: ns}).Append(nil)
		s := Scan(b)
		for f := (Field{}); s.Next(&f); {
			s.Time(&f, &back.ExitedAt)
		}
		if s.Err() != nil || back.ExitedAt != ns {
			t.Errorf("%d: %d, %v", ns, back.ExitedAt, s.Err())
		}
		var p task.DeleteResponse
		if err := proto.Unmarshal(b, &p); err != nil || !p.ExitedAt.IsValid() || p.ExitedAt.AsTime().UnixNano() != ns {
			t.Errorf("%d: protobuf reads %v, %v", ns, p.ExitedAt, err)
		}
	}
	for _, c := range []struct{ sec, want int64 }{
		{math.MaxInt64, math.MaxInt64}, {math.MinInt64, math.MinInt64}, {-62135596800, math.MinInt64},
	} {
		if got := unixNano(c.sec, 0); got != c.want {
			t.Errorf("%d s: %d", c.sec, got)
		}
	}
}

// Text of the outside world, such as a runtime's error, need not be UTF-8.
func TestInvalidText(t *testing.T) {
	b := (&Response{Code: fault.Unknown, Message: "a\xffb"}).Append(nil)
	var r ttrpc.Response
	if err := proto.Unmarshal(b, &r); err != nil || r.Status.Message != "a\ufffdb" {
		t.Errorf("%v, %v", r.Status, err)
	}
	var m StartRequest
	if err := m.Decode([]byte("\x0a\x01\xff")); fault.CodeOf(err) != fault.InvalidArgument {
		t.Errorf("got %v", err)
	}
}

func TestMalformed(t *testing.T) {
	for name, b := range map[string]string{
		"cut key":             "\x80",
		"cut varint":          "\x08\x80",
		"varint too long":     "\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
		"no value":            "\x08",
		"field zero":          "\x00\x01",
		"field number":        "\x80\x80\x80\x80\x10\x01",
		"cut fixed64":         "\x09\x01\x02",
		"cut fixed32":         "\x0d\x01\x02",
		"cut bytes":           "\x0a\x05abc",
		"length overflow":     "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
		"group":               "\x0b\x0c",
		"unknown wire type":   "\x0e",
		"after a good field":  "\x0a\x01a\x12",
		"in a nested message": "\x1a\x02\x0a\x05",
	} {
		var m CreateTaskRequest
		if err := m.Decode([]byte(b)); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A known field in an unexpected wire type is unknown, as for protobuf.
func TestForeignWireType(t *testing.T) {
	b := AppendVarint(nil, 1, 5)                         // a string
	b = AppendString(b, 4, "x")                          // a bool
	b = AppendVarint(b, 3, 1)                            // a repeated message
	b = AppendVarint(b, 10, 1)                           // a message
	b = append(AppendTag(b, 8, Fixed32), 1, 2, 3, 4)     // a string
	b = AppendString(AppendFloat64(b, 2, 1.5), 5, "yes") // a string; as expected
	var got CreateTaskRequest
	if err := got.Decode(b); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff(CreateTaskRequest{Stdin: "yes"}, got); d != "" {
		t.Error(d)
	}
}

func TestPollsDoNotAllocate(t *testing.T) {
	id := "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	request := AppendString(AppendString(nil, 1, id), 2, "exec")
	response := StateResponse{ID: id, Bundle: "/b", Pid: 1, Status: StatusRunning, Stdout: "/fifo", ExitedAt: when}
	metrics := func(b []byte) ([]byte, error) { return AppendFloat64(b, 3, 1), nil }
	buffer := make([]byte, 0, 4096)
	var state StateRequest
	var stats StatsRequest
	var pod SandboxStatusRequest
	n := testing.AllocsPerRun(100, func() {
		if state.Decode(request) != nil || stats.Decode(request) != nil || pod.Decode(request) != nil || state.ID != id || stats.ID != id {
			t.Fatal(state, stats)
		}
		response.Append(buffer)
		if _, err := AppendStats(buffer, "io.containerd.cgroups.v2.Metrics", metrics); err != nil {
			t.Fatal(err)
		}
		if _, err := AppendSandboxMetrics(buffer, id, when, "io.containerd.cgroups.v2.Metrics", metrics); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
