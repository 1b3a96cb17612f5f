// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// The program of a pod's first process. It is never called here: initProgram
// copies it into a file. So it refers to nothing but its stack, where the kernel
// has put argc and argv[0].
TEXT initcode<>(SB), NOSPLIT|NOFRAME, $0
	MOVQ 8(SP), SI     // prctl(PR_SET_NAME, argv[0])
	MOVL $15, DI
	MOVL $157, AX
	SYSCALL
	MOVQ $0x10000, AX  // rt_sigprocmask(SIG_SETMASK, {SIGCHLD}, NULL, 8)
	MOVQ AX, 0(SP)     // the set; argc is not needed
	MOVL $2, DI
	MOVQ SP, SI
	XORL DX, DX
	MOVL $8, R10
	MOVL $14, AX
	SYSCALL
reap:
	MOVQ $-1, DI       // wait4(-1, NULL, 0, NULL)
	XORL SI, SI
	XORL DX, DX
	XORL R10, R10
	MOVL $61, AX
	SYSCALL
	TESTQ AX, AX
	JGT  reap
	MOVQ SP, DI        // no children: rt_sigtimedwait({SIGCHLD}, NULL, NULL, 8)
	XORL SI, SI
	XORL DX, DX
	MOVL $8, R10
	MOVL $128, AX
	SYSCALL
	JMP  reap
	BYTE $0x62; BYTE $0x65; BYTE $0x72; BYTE $0x74 // initMark
	BYTE $0x68; BYTE $0x65; BYTE $0x6e; BYTE $0x64

// func initText() uintptr
TEXT ·initText(SB), NOSPLIT, $0-8
	LEAQ initcode<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// func raw(nr, a, b, c, d, e uintptr) (r uintptr, errno syscall.Errno)
TEXT ·raw(SB), NOSPLIT, $0-64
	MOVQ nr+0(FP), AX
	MOVQ a+8(FP), DI
	MOVQ b+16(FP), SI
	MOVQ c+24(FP), DX
	MOVQ d+32(FP), R10
	MOVQ e+40(FP), R8
	SYSCALL
	MOVQ $0, errno+56(FP)
	CMPQ AX, $-4095
	JCS  done
	NEGQ AX
	MOVQ AX, errno+56(FP)
	MOVQ $-1, AX
done:
	MOVQ AX, r+48(FP)
	RET
