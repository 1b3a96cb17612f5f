// SPDX-License-Identifier: Apache-2.0

// Package berth is the root of the module. It holds no code, only the test that
// keeps the direction of imports and the size of the shim's program in view.
package berth
