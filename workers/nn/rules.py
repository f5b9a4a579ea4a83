"""Which handler sends labels through which operation: by the operation's name, whatever module it is called from."""

from __future__ import annotations

from workers.nn import contractions, moves
from workers.nn.moves import Handler


def _named(handler: Handler, names: str) -> dict[str, Handler]:
    return dict.fromkeys(names.split(), handler)


HANDLERS: dict[str, Handler] = (
    _named(
        moves.elementwise,
        "relu relu6 gelu silu sigmoid tanh hardswish hardsigmoid hardtanh leaky_relu elu selu celu softplus "
        "softsign mish logsigmoid tanhshrink hardshrink softshrink threshold dropout dropout1d dropout2d "
        "dropout3d alpha_dropout feature_dropout feature_alpha_dropout add iadd radd sub isub rsub mul imul "
        "div truediv itruediv floordiv floor_divide neg abs exp expm1 log log1p sqrt rsqrt square pow clamp "
        "clamp_min clamp_max clip maximum minimum where to float double half bfloat16 type type_as contiguous "
        "clone detach identity floor ceil round sign erf sin cos reciprocal lerp addcmul addcdiv eq ne lt le "
        "gt ge logical_and logical_or logical_not masked_fill nan_to_num",
    )
    | _named(
        moves.moving,
        "view reshape flatten unflatten permute transpose swapaxes swapdims movedim moveaxis squeeze "
        "unsqueeze t expand expand_as repeat repeat_interleave cat concat concatenate stack unbind ravel adjoint",
    )
    | _named(moves.parts, "chunk split")
    | _named(moves.reducing, "mean sum amax amin std var logsumexp prod")
    | _named(moves.along_other_axes, "softmax log_softmax softmin normalize")
    | _named(
        moves.spatial,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
        "lp_pool1d lp_pool2d interpolate upsample",
    )
    | _named(moves.number, "size dim numel ndimension")
    | _named(contractions.matmul, "matmul bmm")
    | {"scaled_dot_product_attention": contractions.attention, "einsum": contractions.einsum}
    | {"getitem": moves.item, "getattr": moves.attribute, "pad": moves.pad}
)
# Layers by name, then by the file of torch.nn that they live in.
MODULES: dict[str, Handler] = _named(moves.along_other_axes, "Softmax LogSoftmax Softmin") | {
    "Flatten": moves.moving,
    "Unflatten": moves.moving,
    "Identity": moves.elementwise,
    "GLU": lambda call: NotImplemented,
    "Softmax2d": lambda call: NotImplemented,
    "MultiheadAttention": lambda call: NotImplemented,
}
FAMILIES: dict[str, Handler] = {
    "torch.nn.modules.activation": moves.elementwise,
    "torch.nn.modules.dropout": moves.elementwise,
    "torch.nn.modules.pooling": moves.spatial,
    "torch.nn.modules.upsampling": moves.spatial,
    "torch.nn.modules.padding": moves.spatial,
}
