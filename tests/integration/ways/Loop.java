/* SPDX-License-Identifier: Apache-2.0 */
import java.nio.ByteBuffer;
import java.util.concurrent.atomic.AtomicLong;

/** Direct buffers over RDMA while the virtual machine collects garbage and catches its own segmentation faults. */
public final class Loop {
    private static final int SIZE = 1 << 20;
    private static final int ROUNDS = 20;
    private static volatile boolean ended;

    static native long open(ByteBuffer buffer);

    static native void write(long loop, int from, int to, int length);

    static native void close(long loop);

    /** Compiled, a null is found by the fault that it causes. */
    private static int lengthOf(String text) {
        try {
            return text.length();
        } catch (NullPointerException fault) {
            return -1;
        }
    }

    private static void makeGarbage(AtomicLong faults) {
        for (int i = 0; !ended; i++) {
            byte[][] garbage = new byte[64][];
            for (int j = 0; j < garbage.length; j++) {
                garbage[j] = new byte[1 << 14];
            }
            if (lengthOf(i % 1000 == 999 ? null : "text" + garbage.length) == -1) {
                faults.incrementAndGet();
            }
        }
    }

    public static void main(String[] arguments) throws InterruptedException {
        System.load(arguments[0]);
        AtomicLong faults = new AtomicLong();
        Thread other = new Thread(() -> makeGarbage(faults));
        other.start();
        for (int round = 0; round < ROUNDS; round++) {
            ByteBuffer buffer = ByteBuffer.allocateDirect(2 * SIZE);
            long loop = open(buffer);
            for (int i = 0; i < SIZE; i++) {
                buffer.put(i, (byte) (i * 31 + round));
            }
            write(loop, 0, SIZE, SIZE);
            for (int i = 0; i < SIZE; i++) {
                if (buffer.get(SIZE + i) != (byte) (i * 31 + round)) {
                    throw new AssertionError("round " + round + ", byte " + i);
                }
            }
            close(loop);
            System.gc();
        }
        while (faults.get() == 0) {
            Thread.onSpinWait();
        }
        ended = true;
        other.join();
        System.out.println("all bytes as they were");
    }
}
