/* SPDX-License-Identifier: Apache-2.0 */
/* loop.h for Loop.java: a library that is linked to libibverbs, as those of Java's RDMA packages are. */
#include <jni.h>

#include "loop.h"

JNIEXPORT jlong JNICALL Java_Loop_open(JNIEnv *env, jclass class, jobject buffer)
{
    (void)class;
    void *memory = (*env)->GetDirectBufferAddress(env, buffer);

    return (jlong)(intptr_t)loop_open(memory, (size_t)(*env)->GetDirectBufferCapacity(env, buffer));
}

JNIEXPORT void JNICALL Java_Loop_write(JNIEnv *env, jclass class, jlong loop, jint from, jint to, jint length)
{
    (void)env;
    (void)class;
    loop_write((struct loop *)(intptr_t)loop, (size_t)from, (size_t)to, (uint32_t)length);
}

JNIEXPORT void JNICALL Java_Loop_close(JNIEnv *env, jclass class, jlong loop)
{
    (void)env;
    (void)class;
    loop_close((struct loop *)(intptr_t)loop);
}
