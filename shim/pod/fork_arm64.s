// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// The program of a pod's first process. It is never called here: initProgram
// copies it into a file. So it refers to nothing but its stack, where the kernel
// has put argc and argv[0].
TEXT initcode<>(SB), NOSPLIT|NOFRAME, $0
	MOVD 8(RSP), R1    // prctl(PR_SET_NAME, argv[0])
	MOVD $15, R0
	MOVD $167, R8
	SVC
	MOVD $0x10000, R9  // rt_sigprocmask(SIG_SETMASK, {SIGCHLD}, NULL, 8)
	MOVD R9, 0(RSP)    // the set; argc is not needed
	MOVD $2, R0
	MOVD RSP, R1
	MOVD $0, R2
	MOVD $8, R3
	MOVD $135, R8
	SVC
reap:
	MOVD $-1, R0       // wait4(-1, NULL, 0, NULL)
	MOVD $0, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $260, R8
	SVC
	CMP  $0, R0
	BGT  reap
	MOVD RSP, R0       // no children: rt_sigtimedwait({SIGCHLD}, NULL, NULL, 8)
	MOVD $0, R1
	MOVD $0, R2
	MOVD $8, R3
	MOVD $137, R8
	SVC
	B    reap
	WORD $0x74726562   // initMark
	WORD $0x646e6568

// func initText() uintptr
TEXT ·initText(SB), NOSPLIT, $0-8
	MOVD $initcode<>(SB), R0
	MOVD R0, ret+0(FP)
	RET

// func raw(nr, a, b, c, d, e uintptr) (r uintptr, errno syscall.Errno)
TEXT ·raw(SB), NOSPLIT, $0-64
	MOVD nr+0(FP), R8
	MOVD a+8(FP), R0
	MOVD b+16(FP), R1
	MOVD c+24(FP), R2
	MOVD d+32(FP), R3
	MOVD e+40(FP), R4
	SVC
	MOVD $0, R9
	CMN  $4095, R0
	BCC  done
	NEG  R0, R9
	MOVD $-1, R0
done:
	MOVD R0, r+48(FP)
	MOVD R9, errno+56(FP)
	RET
