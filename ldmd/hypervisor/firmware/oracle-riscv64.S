# The oracle for riscv64; ldmd/hypervisor/oracle.py states the rules it follows.
#
#   riscv64-linux-gnu-as -march=rv64im -mabi=lp64 -o oracle-riscv64.o oracle-riscv64.S
#   riscv64-linux-gnu-objcopy -O binary -j .text oracle-riscv64.o oracle-riscv64.bin
#
# Entered at the first byte of RAM in machine mode, with RAM's size in bytes in a1. It runs at any
# address, as long as RAM begins with it. The first page holds this code and, at its end, the digits
# being printed; every page behind it is counted. The console is one byte-wide register.

        .option norelax
        .equ    PAGE_BYTES, 4096
        .equ    WORD, 0                 # the page's address, 8 bytes
        .equ    BYTE, 8                 # the page's count of visits
        .equ    PAGES_PER_LINE, 16384   # 9 instructions a page: 68 lines a second at 10 MHz
        .equ    CONSOLE, 0x10000000

        .text
        .globl  _start
_start:
        auipc   s0, 0                   # first byte of RAM
        add     s1, s0, a1              # first byte behind RAM
        li      s2, CONSOLE
        li      s3, 0                   # lines printed
        li      s4, PAGES_PER_LINE
        mv      s5, s4                  # pages to go until the next line
        li      s6, PAGE_BYTES
        li      s8, 10

pass:   add     s7, s0, s6              # the page: the second one
visit:  sd      s7, WORD(s7)
        lbu     t0, BYTE(s7)
        addi    t0, t0, 1
        sb      t0, BYTE(s7)
        addi    s5, s5, -1
        beqz    s5, line
next:   add     s7, s7, s6
        bltu    s7, s1, visit
        j       pass

line:   mv      s5, s4
        addi    s3, s3, 1
        li      t0, 'o'
        sb      t0, 0(s2)
        li      t0, 'r'
        sb      t0, 0(s2)
        li      t0, 'a'
        sb      t0, 0(s2)
        li      t0, 'c'
        sb      t0, 0(s2)
        li      t0, 'l'
        sb      t0, 0(s2)
        li      t0, 'e'
        sb      t0, 0(s2)
        li      t0, ' '
        sb      t0, 0(s2)
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
        li      t0, '\n'
        sb      t0, 0(s2)
        j       next
