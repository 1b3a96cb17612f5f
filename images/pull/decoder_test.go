// SPDX-License-Identifier: Apache-2.0

package pull_test

const envAct = "BERTH_PULL_ACT"

func act() int { return 0 }

func decoderTOML() string { return "" }
