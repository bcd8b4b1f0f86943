/* SPDX-License-Identifier: MIT */
#include <libblkrepl/libblkrepl.h>
#include <stdio.h>

int main(void)
{
    blkrepl_context *ctx = NULL;
    int rc = blkrepl_context_create(NULL, &ctx);

    printf("libblkrepl %s: %s\n", blkrepl_version(), rc == 0 ? "ok" : blkrepl_error_message());
    return rc < 0 || blkrepl_context_free(ctx) < 0;
}
