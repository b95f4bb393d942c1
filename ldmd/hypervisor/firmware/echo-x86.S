/* The echo for QEMU's x86 machines: a 64 KiB ROM with a console to type at.
 *
 * It prints a prompt, "1> ", and then every byte that it reads, as it comes; a carriage return or a line feed becomes
 * both, and the next prompt has the next number. All of its state is in registers (ebp: number of the prompt), but for
 * the return addresses and the digits of a number, which are on a stack below 1 MiB.
 *
 * Assembled with
 *
 *   as --32 -o echo-x86.o echo-x86.S
 *   ld -m elf_i386 -Ttext 0xffff0000 -e start -o echo-x86.elf echo-x86.o
 *   objcopy -O binary -j .text echo-x86.elf echo-x86.bin
 */
        .set    STACK, 0x7c00
        .set    SERIAL, 0x3f8
        .set    LINE_STATUS, SERIAL + 5
        .set    DATA_READY, 1
        .set    TRANSMITTER_EMPTY, 0x20

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

        xorl    %ebp, %ebp
prompt:
        incl    %ebp
        movl    %ebp, %eax              /* digits, last first, on the stack; ecx counts them (it is 0 after the loop) */
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
        movb    $'>', %al
        call    print_byte
        movb    $' ', %al
        call    print_byte
read:
        pause
        movl    $LINE_STATUS, %edx
        inb     %dx, %al
        testb   $DATA_READY, %al
        jz      read
        movl    $SERIAL, %edx
        inb     %dx, %al
        cmpb    $'\r', %al
        je      line
        cmpb    $'\n', %al
        je      line
        call    print_byte
        jmp     read
line:
        movb    $'\r', %al
        call    print_byte
        movb    $'\n', %al
        call    print_byte
        jmp     prompt

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

        /* The first instruction after reset, at 0xfffffff0. */
        .code16
        .org    0xfff0, 0xff
        jmp     start
        .org    0x10000, 0xff
