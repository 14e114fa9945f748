#include "textflag.h"

// Registers: X0 to X7 the blocks, X8 a round key, X9 the tweak of the next block,
// X10 for intermediate results, X11 what carries of a doubling become; AX the
// schedule, DI the data. The tweaks of a group are kept on the stack.

// The carry out of the low half is bit 64, that out of the high half the
// polynomial.
DATA carry<>+0(SB)/4, $0x87
DATA carry<>+4(SB)/4, $0
DATA carry<>+8(SB)/4, $1
DATA carry<>+12(SB)/4, $0
GLOBL carry<>(SB), RODATA|NOPTR, $16

// DOUBLE makes the tweak of the next block: twice the last one in GF(2^128).
#define DOUBLE \
	PSHUFD $0x13, X9, X10; \
	PSRAL  $31, X10;       \
	PADDQ  X9, X9;         \
	PAND   X11, X10;       \
	PXOR   X10, X9

// LOAD takes a block, and its tweak.
#define LOAD(at, block) \
	MOVOU at(DI), block; \
	PXOR  X9, block;     \
	MOVOU X9, at(SP);    \
	DOUBLE

// STORE gives it back.
#define STORE(at, block) \
	MOVOU at(SP), X10; \
	PXOR  X10, block;  \
	MOVOU block, at(DI)

// func encryptGroups(schedule *uint32, rounds int, tweak, p *byte, groups int)
TEXT ·encryptGroups(SB), NOSPLIT, $128-40
	MOVQ schedule+0(FP), AX
	MOVQ rounds+8(FP), DX
	MOVQ tweak+16(FP), SI
	MOVQ p+24(FP), DI
	MOVQ groups+32(FP), R8
	MOVOU (SI), X9
	MOVOU carry<>(SB), X11
	DECQ DX // between the first key and the last

next:
	LOAD(0, X0)
	LOAD(16, X1)
	LOAD(32, X2)
	LOAD(48, X3)
	LOAD(64, X4)
	LOAD(80, X5)
	LOAD(96, X6)
	LOAD(112, X7)
	MOVOU (AX), X8
	PXOR X8, X0
	PXOR X8, X1
	PXOR X8, X2
	PXOR X8, X3
	PXOR X8, X4
	PXOR X8, X5
	PXOR X8, X6
	PXOR X8, X7
	LEAQ 16(AX), BX
	MOVQ DX, CX

round:
	MOVOU (BX), X8
	AESENC X8, X0
	AESENC X8, X1
	AESENC X8, X2
	AESENC X8, X3
	AESENC X8, X4
	AESENC X8, X5
	AESENC X8, X6
	AESENC X8, X7
	ADDQ $16, BX
	DECQ CX
	JNZ  round

	MOVOU (BX), X8
	AESENCLAST X8, X0
	AESENCLAST X8, X1
	AESENCLAST X8, X2
	AESENCLAST X8, X3
	AESENCLAST X8, X4
	AESENCLAST X8, X5
	AESENCLAST X8, X6
	AESENCLAST X8, X7
	STORE(0, X0)
	STORE(16, X1)
	STORE(32, X2)
	STORE(48, X3)
	STORE(64, X4)
	STORE(80, X5)
	STORE(96, X6)
	STORE(112, X7)
	ADDQ $128, DI
	DECQ R8
	JNZ  next
	RET

// func decryptGroups(schedule *uint32, rounds int, tweak, p *byte, groups int)
TEXT ·decryptGroups(SB), NOSPLIT, $128-40
	MOVQ schedule+0(FP), AX
	MOVQ rounds+8(FP), DX
	MOVQ tweak+16(FP), SI
	MOVQ p+24(FP), DI
	MOVQ groups+32(FP), R8
	MOVOU (SI), X9
	MOVOU carry<>(SB), X11
	DECQ DX // between the first key and the last

next:
	LOAD(0, X0)
	LOAD(16, X1)
	LOAD(32, X2)
	LOAD(48, X3)
	LOAD(64, X4)
	LOAD(80, X5)
	LOAD(96, X6)
	LOAD(112, X7)
	MOVOU (AX), X8
	PXOR X8, X0
	PXOR X8, X1
	PXOR X8, X2
	PXOR X8, X3
	PXOR X8, X4
	PXOR X8, X5
	PXOR X8, X6
	PXOR X8, X7
	LEAQ 16(AX), BX
	MOVQ DX, CX

round:
	MOVOU (BX), X8
	AESDEC X8, X0
	AESDEC X8, X1
	AESDEC X8, X2
	AESDEC X8, X3
	AESDEC X8, X4
	AESDEC X8, X5
	AESDEC X8, X6
	AESDEC X8, X7
	ADDQ $16, BX
	DECQ CX
	JNZ  round

	MOVOU (BX), X8
	AESDECLAST X8, X0
	AESDECLAST X8, X1
	AESDECLAST X8, X2
	AESDECLAST X8, X3
	AESDECLAST X8, X4
	AESDECLAST X8, X5
	AESDECLAST X8, X6
	AESDECLAST X8, X7
	STORE(0, X0)
	STORE(16, X1)
	STORE(32, X2)
	STORE(48, X3)
	STORE(64, X4)
	STORE(80, X5)
	STORE(96, X6)
	STORE(112, X7)
	ADDQ $128, DI
	DECQ R8
	JNZ  next
	RET

// func subWord(x uint32) uint32
// With four equal columns the shift of rows changes nothing, and a round key of
// zeroes neither.
TEXT ·subWord(SB), NOSPLIT, $0-12
	MOVL       x+0(FP), AX
	MOVQ       AX, X0
	PSHUFD     $0, X0, X0
	PXOR       X1, X1
	AESENCLAST X1, X0
	MOVQ       X0, AX
	MOVL       AX, ret+8(FP)
	RET

// func invMixColumns(key *uint32)
TEXT ·invMixColumns(SB), NOSPLIT, $0-8
	MOVQ   key+0(FP), AX
	MOVOU  (AX), X0
	AESIMC X0, X0
	MOVOU  X0, (AX)
	RET
