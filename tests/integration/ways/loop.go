// SPDX-License-Identifier: Apache-2.0

// Go's own heap over RDMA, by cgo, while its collector runs and its threads come and go.
package main

// #cgo LDFLAGS: -libverbs
// #include "loop.h"
import "C"

import (
	"runtime"
	"unsafe"
)

const (
	size   = 1 << 20
	rounds = 20
)

func transfer(round int) bool {
	memory := make([]byte, 2*size)
	loop := C.loop_open(unsafe.Pointer(&memory[0]), C.size_t(len(memory)))
	for i := range memory[:size] {
		memory[i] = byte(i*31 + round)
	}
	C.loop_write(loop, 0, size, size)
	for i := range memory[:size] {
		if memory[size+i] != byte(i*31+round) {
			println("round", round, "byte", i)
			return false
		}
	}
	C.loop_close(loop)
	return true
}

func main() {
	ended := make(chan bool)
	for i := 0; i < 4; i++ {
		go func() {
			garbage := [][]byte{}
			for {
				select {
				case <-ended:
					return
				default:
					garbage = append(garbage, make([]byte, 1<<14))
					if len(garbage) == 1<<10 {
						garbage = nil
					}
					runtime.Gosched()
				}
			}
		}()
	}
	for round := 0; round < rounds; round++ {
		if !transfer(round) {
			panic("bytes differ")
		}
		runtime.GC()
	}
	close(ended)
	println("all bytes as they were")
}
