/* The oracle on a disk: a boot sector for a volume. With the firmware `default` (SeaBIOS) the domain starts it.
 *
 * For ever: write a number into sector 8, read it back, print a line `oracle NUMBER` on the console when it is the same, add
 * one to the number. A write or read that the domain hears an error of ends that with the line `the disk failed`. So a console
 * without a gap says that every write was done, and the number on the volume is the last one printed or the one after it.
 *
 * Made with
 *   as --32 -o disk-oracle.o disk-oracle.S
 *   ld -m elf_i386 -e start -Ttext 0x7c00 --oformat binary -o disk-oracle.bin disk-oracle.o
 */
    .code16
    .text
    .globl start
start:
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    mov %dl, drive
    xor %ebp, %ebp
round:
    mov %ebp, 0x8000
    mov $0x43, %ah
    call transfer
    movl $-1, 0x8000
    mov $0x42, %ah
    call transfer
    cmp %ebp, 0x8000
    jne failed
    mov $text, %si
    call print
    mov %ebp, %eax
    mov $0x7bf0, %di
    movb $0, (%di)
    mov $10, %ecx
digit:
    xor %edx, %edx
    div %ecx
    add $'0', %dl
    dec %di
    mov %dl, (%di)
    test %eax, %eax
    jnz digit
    mov %di, %si
    call print
    mov $end, %si
    call print
    inc %ebp
    mov $300000, %ecx
wait:
    dec %ecx
    jnz wait
    jmp round
transfer:
    xor %al, %al
    mov drive, %dl
    mov $packet, %si
    int $0x13
    jc failed
    ret
failed:
    mov $bad, %si
    call print
    cli
    hlt
print:
    lodsb
    test %al, %al
    jz printed
    mov $0x3f8, %dx
    out %al, %dx
    jmp print
printed:
    ret
text: .asciz "oracle "
end:  .asciz "\n"
bad:  .asciz "the disk failed\n"
drive: .byte 0
    .balign 4
packet:
    .byte 16, 0
    .word 1
    .word 0x8000, 0
    .quad 8
    .org 510
    .word 0xaa55
