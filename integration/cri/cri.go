// SPDX-License-Identifier: Apache-2.0

// Package cri is a small client of the Kubernetes container runtime interface,
// doing for tests what the kubelet and a user of it do: pods, containers, exec,
// attach and port forwarding over the runtime's streaming server, and reading
// log files. It decides nothing and retries nothing.
package cri

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessageBytes is the kubelet's limit for a message.
const maxMessageBytes = 16 << 20

// Client is a connection to a runtime. Safe for concurrent use.
type Client struct {
	runtime.RuntimeServiceClient
	Images runtime.ImageServiceClient
	conn   *grpc.ClientConn
}

// Dial makes a client of the runtime at a unix socket. It does not wait for the
// runtime to answer. The caller ends it with Close.
func Dial(socket string) (*Client, error) {
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", socket, err)
	}
	return &Client{
		RuntimeServiceClient: runtime.NewRuntimeServiceClient(conn),
		Images:               runtime.NewImageServiceClient(conn),
		conn:                 conn,
	}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Ready returns nil when the runtime and its network are.
func (c *Client) Ready(ctx context.Context) error {
	answer, err := c.RuntimeServiceClient.Status(ctx, &runtime.StatusRequest{})
	if err != nil {
		return err
	}
	for _, condition := range answer.GetStatus().GetConditions() {
		if !condition.GetStatus() && condition.GetType() != "ContainerdHasNoDeprecationWarnings" {
			return fmt.Errorf("%s: %s: %s", condition.GetType(), condition.GetReason(), condition.GetMessage())
		}
	}
	return nil
}

// Pod is a running sandbox and what it was made from, which its containers need
// as well.
type Pod struct {
	ID     string
	Config *runtime.PodSandboxConfig
	client *Client
}

// Run makes a pod with a runtime handler.
func (c *Client) Run(ctx context.Context, handler string, config *runtime.PodSandboxConfig) (*Pod, error) {
	answer, err := c.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		return nil, fmt.Errorf("run pod %s: %w", config.GetMetadata().GetName(), err)
	}
	return &Pod{ID: answer.GetPodSandboxId(), Config: config, client: c}, nil
}

// Use is the pod for another client, one made after the runtime restarted.
func (p *Pod) Use(c *Client) *Pod { return &Pod{ID: p.ID, Config: p.Config, client: c} }

// Create makes a container and returns its id.
func (p *Pod) Create(ctx context.Context, config *runtime.ContainerConfig) (string, error) {
	answer, err := p.client.CreateContainer(ctx, &runtime.CreateContainerRequest{
		PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config,
	})
	if err != nil {
		return "", fmt.Errorf("create container %s: %w", config.GetMetadata().GetName(), err)
	}
	return answer.GetContainerId(), nil
}

// Start makes a container and starts it.
func (p *Pod) Start(ctx context.Context, config *runtime.ContainerConfig) (string, error) {
	id, err := p.Create(ctx, config)
	if err != nil {
		return "", err
	}
	return id, p.client.Start(ctx, id)
}

// Stop stops the pod and everything in it. It may be repeated.
func (p *Pod) Stop(ctx context.Context) error {
	_, err := p.client.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.ID})
	return err
}

// Remove removes the pod. It may be repeated.
func (p *Pod) Remove(ctx context.Context) error {
	_, err := p.client.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.ID})
	return err
}

// Status returns the pod's.
func (p *Pod) Status(ctx context.Context) (*runtime.PodSandboxStatus, error) {
	answer, err := p.client.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p.ID})
	return answer.GetStatus(), err
}

// Start starts a container.
func (c *Client) Start(ctx context.Context, id string) error {
	_, err := c.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: id})
	return err
}

// Stop stops a container: its signal, then after the timeout SIGKILL.
func (c *Client) Stop(ctx context.Context, id string, timeout time.Duration) error {
	_, err := c.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: id, Timeout: int64(timeout.Seconds())})
	return err
}

// Remove removes a container, running or not. It may be repeated.
func (c *Client) Remove(ctx context.Context, id string) error {
	_, err := c.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: id})
	return err
}

// ContainerStatus returns a container's.
func (c *Client) ContainerStatus(ctx context.Context, id string) (*runtime.ContainerStatus, error) {
	answer, err := c.RuntimeServiceClient.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id})
	return answer.GetStatus(), err
}

// ExecSync runs a command and collects its output. A timeout of 0 is none.
func (c *Client) ExecSync(ctx context.Context, id string, timeout time.Duration, command ...string) (*runtime.ExecSyncResponse, error) {
	return c.RuntimeServiceClient.ExecSync(ctx, &runtime.ExecSyncRequest{
		ContainerId: id, Cmd: command, Timeout: int64(timeout.Seconds()),
	})
}

// Reopen makes the runtime open a container's log file anew.
func (c *Client) Reopen(ctx context.Context, id string) error {
	_, err := c.ReopenContainerLog(ctx, &runtime.ReopenContainerLogRequest{ContainerId: id})
	return err
}
