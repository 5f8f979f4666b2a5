"""CoOp: learned context tokens in the text tower."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from bench.errors import UserError
from methods.base import Method, ModelShape, check_depth

if TYPE_CHECKING:
    from bench.core.backbone import DualEncoder


class CoOp(Method):
    """`n_ctx` learned vectors stand between the start token and the caption.

    As published they are learned at the input only (`prompt_depth: 1`, 8,192 parameters on ViT-B-32). The default is
    the deep variant behind the published tables' 98,304: in every later block the prompts' positions are overwritten by
    that block's own vectors. Captions lose room: those longer than the context minus `n_ctx` tokens are cut before
    their end token. The output differs from the backbone's from the start, because prompts take part in attention.
    """

    name = "coop"
    paper = "Zhou et al. 2022, arXiv 2109.01134"
    needs_slots = ("text",)
    n_ctx: int = Field(16, ge=1)
    prompt_depth: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    init_std: float = Field(0.02, gt=0)

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        if self.n_ctx > shape.text.tokens - 3:
            raise UserError(f"coop: n_ctx {self.n_ctx} leaves no room for words in a context of {shape.text.tokens}")

    def attach(self, model: DualEncoder) -> None:
        from methods.layers import OverwriteTokens, PromptedEmbedding, insert_placeholders, prompts

        blocks = model.text_blocks.slotted()
        depth = check_depth(self.name, self.prompt_depth, len(blocks))
        model.check_pools_at_end_token(self.name)
        width = model.text_blocks.width
        model.replace_token_embedding(
            lambda embedding: PromptedEmbedding(embedding, prompts(self.n_ctx, width, self.init_std))
        )
        model.token_rewrites.append(insert_placeholders(self.n_ctx))
        for block in blocks[1:depth]:
            block.fill(enter=OverwriteTokens(prompts(self.n_ctx, width, self.init_std), start=1))

    def trainable_params(self, shape: ModelShape) -> int | None:
        return check_depth(self.name, self.prompt_depth, shape.text.layers) * self.n_ctx * shape.text.width
