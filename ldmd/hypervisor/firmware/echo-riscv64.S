# The echo for riscv64: a console to type at, for tests and demonstrations of `ldm console`.
#
#   riscv64-linux-gnu-as -march=rv64im -mabi=lp64 -o echo-riscv64.o echo-riscv64.S
#   riscv64-linux-gnu-objcopy -O binary -j .text echo-riscv64.o echo-riscv64.bin
#
# Entered like the oracle. It prints a prompt, "1> ", and then every byte that it reads, as it comes; a carriage return
# or a line feed becomes both, and the next prompt has the next number. So what was typed and lost, or came twice, is
# seen in what is printed, and so are prompts that were lost or came twice.

        .option norelax
        .equ    PAGE_BYTES, 4096
        .equ    CONSOLE, 0x10000000
        .equ    LINE_STATUS, 5
        .equ    DATA_READY, 1

        .text
        .globl  _start
_start:
        auipc   s0, 0                   # first byte of RAM
        li      s2, CONSOLE
        li      s3, 0                   # prompts printed
        li      s6, PAGE_BYTES
        li      s8, 10
        li      s9, '\r'

prompt: addi    s3, s3, 1
        mv      t1, s3
        add     t2, s0, s6              # digits grow down from the end of the first page
        mv      t3, t2
digit:  remu    t0, t1, s8
        divu    t1, t1, s8
        addi    t0, t0, '0'
        addi    t2, t2, -1
        sb      t0, 0(t2)
        bnez    t1, digit
print:  lbu     t0, 0(t2)
        sb      t0, 0(s2)
        addi    t2, t2, 1
        bltu    t2, t3, print
        li      t0, '>'
        sb      t0, 0(s2)
        li      t0, ' '
        sb      t0, 0(s2)

read:   lbu     t0, LINE_STATUS(s2)
        andi    t0, t0, DATA_READY
        beqz    t0, read
        lbu     t0, 0(s2)
        beq     t0, s8, line            # a line feed is 10 too
        beq     t0, s9, line
        sb      t0, 0(s2)
        j       read

line:   sb      s9, 0(s2)
        sb      s8, 0(s2)
        j       prompt
