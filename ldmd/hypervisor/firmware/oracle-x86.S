/* The oracle for QEMU's x86 machines: a 64 KiB ROM that obeys the rules in ldmd/hypervisor/oracle.py.
 *
 * Counted pages: from 1 MiB to the end of RAM, at most to 2 GiB (below every machine's hole for PCI, so that an address
 * is an offset in the RAM region). Word: 4 bytes, little-endian, at 0. Byte: at 8. All of the program's own state is in
 * registers, but for the return address and the digits of a line, which are on a stack below 1 MiB.
 *
 *   esi  end of RAM          edi  page             ecx  pages until the next line
 *   ebp  number of the line  ebx  time stamp counter, low half, when the last line was printed
 *
 * Assembled with
 *
 *   as --32 -o oracle-x86.o oracle-x86.S
 *   ld -m elf_i386 -Ttext 0xffff0000 -e start -o oracle-x86.elf oracle-x86.o
 *   objcopy -O binary -j .text oracle-x86.elf oracle-x86.bin
 */
        .set    PAGE, 0x1000
        .set    RAM_FIRST, 0x00100000
        .set    RAM_END_MAX, 0x80000000
        .set    STACK, 0x7c00
        .set    PAGES_PER_LINE, 4096
        /* A line waits until the last one is that old, or time went back (another host's counter): about 100 lines a
         * second whatever runs the machine, so that a console never fills a disk. */
        .set    TICKS_PER_LINE, 0x01800000

        .set    SERIAL, 0x3f8
        .set    TRANSMITTER_EMPTY, 0x20
        /* With QEMU's device isa-debug-exit at this port, the process ends with status 3 after the first line: that is how
         * the driver finds out whether KVM works. Without it nobody listens. */
        .set    DEBUG_EXIT, 0xf4
        .set    FW_CFG_SELECT, 0x510    /* docs/specs/fw_cfg of QEMU: selector, then bytes at the next port */
        .set    FW_CFG_RAM_SIZE, 3

        .text
        .code16
        .globl  start
rom:
start:
        cli
        cld
        lgdtl   %cs:gdt_pointer - rom
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $8, $protected

        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff      /* 8: code, 0 to 4 GiB; marked as accessed, since a ROM cannot be written */
        .quad   0x00cf93000000ffff      /* 16: data, 0 to 4 GiB */
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   gdt

        .code32
protected:
        movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $STACK, %esp

        movl    $serial_settings, %esi  /* 115200 8N1, FIFO on, no interrupts */
        movl    $6, %ecx
1:      xorl    %edx, %edx
        lodsb
        movb    %al, %dl
        addl    $SERIAL, %edx
        lodsb
        outb    %al, %dx
        loop    1b

        movl    $FW_CFG_SELECT, %edx
        movw    $FW_CFG_RAM_SIZE, %ax
        outw    %ax, %dx
        incl    %edx
        movl    $8, %ecx                /* a 64-bit number, lowest byte first, into ebx:esi */
2:      inb     %dx, %al
        shrdl   $8, %ebx, %esi
        shrdl   $8, %eax, %ebx
        loop    2b
        testl   %ebx, %ebx
        jnz     3f
        cmpl    $RAM_END_MAX, %esi
        jbe     4f
3:      movl    $RAM_END_MAX, %esi
4:
        xorl    %ebp, %ebp
        xorl    %ebx, %ebx

pass:
        movl    $RAM_FIRST, %edi
begin:
        movl    $PAGES_PER_LINE, %ecx
visit:
        cmpl    %esi, %edi
        jae     end_of_pass
        movl    %edi, (%edi)
        incb    8(%edi)
        addl    $PAGE, %edi
        decl    %ecx
        jnz     visit
        call    print_line
        jmp     begin
end_of_pass:
        call    print_line
        jmp     pass

/* Waits for its time, prints "oracle " ebp "\n", adds one to ebp. Changes eax, ecx, edx. */
print_line:
        pause
        rdtsc
        subl    %ebx, %eax
        cmpl    $TICKS_PER_LINE, %eax
        jb      print_line
        addl    %eax, %ebx

        pushl   %esi
        movl    $word, %esi
        movl    $7, %ecx
1:      lodsb
        call    print_byte
        loop    1b

        movl    %ebp, %eax              /* digits, last first, on the stack; ecx counts them */
        movl    $10, %esi
2:      xorl    %edx, %edx
        divl    %esi
        addb    $'0', %dl
        pushl   %edx
        incl    %ecx
        testl   %eax, %eax
        jnz     2b
3:      popl    %eax
        call    print_byte
        loop    3b

        movb    $'\n', %al
        call    print_byte
        popl    %esi
        testl   %ebp, %ebp
        jnz     4f
        movb    $1, %al
        outb    %al, $DEBUG_EXIT
4:      incl    %ebp
        ret

/* Prints al. Changes eax, edx. */
print_byte:
        movb    %al, %ah
        movl    $SERIAL + 5, %edx
1:      inb     %dx, %al
        testb   $TRANSMITTER_EMPTY, %al
        jz      1b
        movb    %ah, %al
        movl    $SERIAL, %edx
        outb    %al, %dx
        ret

serial_settings:                        /* register, value */
        .byte   1, 0,  3, 0x80,  0, 1,  1, 0,  3, 3,  2, 7
word:
        .ascii  "oracle "

        /* The first instruction after reset, at 0xfffffff0. */
        .code16
        .org    0xfff0, 0xff
        jmp     start
        .org    0x10000, 0xff
