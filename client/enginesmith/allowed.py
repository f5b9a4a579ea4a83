"""What a network that travels as data may consist of: names of functions, of Tensor methods, of torch.nn classes.

Both sides read this list: the client refuses to write what the server would refuse to read. Nothing here changes a
global state, touches files, runs code, or draws random numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# The graph form that this release writes and reads.
VERSION = 1
# Node names, input names and paths end up in the source that torch.fx generates: nothing else may stand in them.
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}\Z")
PATH = re.compile(r"[A-Za-z0-9_]{1,200}(\.[A-Za-z0-9_]{1,200}){0,60}\Z")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_TORCH = _words("""
abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv adaptive_avg_pool1d allclose amax amin aminmax all any
arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort asin asinh as_tensor atan atan2 atanh
atleast_1d atleast_2d atleast_3d avg_pool1d baddbmm bincount bitwise_and bitwise_not bitwise_or bitwise_xor block_diag
bmm broadcast_tensors broadcast_to bucketize cat cdist ceil celu chain_matmul channel_shuffle chunk clamp clamp_max
clamp_min clip clone column_stack complex concat concatenate conj constant_pad_nd conv1d conv2d conv3d
conv_transpose1d conv_transpose2d conv_transpose3d copysign cos cosh cosine_similarity count_nonzero cross cummax
cummin cumprod cumsum deg2rad diag diag_embed diagonal diff dist div divide dot dsplit dstack einsum embedding
eq equal erf erfc erfinv exp exp2 expm1 eye flatten flip fliplr flipud float_power floor floor_divide fmax fmin fmod
frac full full_like gather ge greater greater_equal group_norm gt hardshrink heaviside hsplit hstack hypot imag
index_add index_copy index_fill index_select inner instance_norm is_floating_point isclose isfinite isinf isnan
isneginf isposinf kron kthvalue layer_norm le lerp less less_equal lgamma linspace log log10 log1p log2 logaddexp
logaddexp2 logcumsumexp logical_and logical_not logical_or logical_xor logit log_softmax logspace logsumexp lt
masked_fill masked_select masked_scatter matmul max max_pool1d max_pool2d max_pool3d maximum mean median meshgrid min
minimum mm movedim moveaxis mul multiply mv nan_to_num nanmean nanmedian nansum narrow ne neg negative nonzero norm
not_equal numel ones ones_like outer pairwise_distance permute pixel_shuffle pixel_unshuffle polar polygamma positive
pow prelu prod quantile rad2deg ravel real reciprocal relu remainder renorm repeat_interleave reshape rms_norm roll
rot90 round rsqrt rsub scatter scatter_add scatter_reduce searchsorted select selu sgn sigmoid sign signbit sin sinc
sinh softmax sort split sqrt square squeeze stack std std_mean sub subtract sum swapaxes swapdims t take
take_along_dim tan tanh tensor tensor_split tensordot threshold tile topk transpose trapezoid tril tril_indices triu
triu_indices true_divide trunc unbind unflatten unique unravel_index unsqueeze vander var var_mean vdot view_as_complex
view_as_real vsplit vstack where xlogy zeros zeros_like
relu_ sigmoid_ tanh_ clamp_ sqrt_ exp_ neg_ abs_
""")

_FUNCTIONAL = _words("""
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
affine_grid avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear celu channel_shuffle conv1d conv2d conv3d
conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity elu embedding embedding_bag fold gelu glu
grid_sample group_norm hardshrink hardsigmoid hardswish hardtanh instance_norm interpolate layer_norm leaky_relu linear
local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d lp_pool3d max_pool1d max_pool2d max_pool3d max_unpool1d
max_unpool2d max_unpool3d mish multi_head_attention_forward normalize one_hot pad pairwise_distance pdist pixel_shuffle
pixel_unshuffle prelu relu relu6 rms_norm scaled_dot_product_attention selu sigmoid silu softmax softmin softplus
softshrink softsign tanh tanhshrink threshold unfold upsample
relu_ elu_ leaky_relu_ celu_ selu_ hardtanh_ threshold_
""")

_SPECIAL = _words("erf erfc exp2 expit expm1 log1p log_softmax logit logsumexp round sinc softmax xlogy")
_FFT = _words("fft ifft rfft irfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn fftshift ifftshift fftfreq rfftfreq")
_LINALG = _words("norm vector_norm matrix_norm multi_dot cross diagonal vecdot matmul")

_OPERATOR = _words("""
abs add and_ eq floordiv ge getitem gt index inv invert le lt matmul mod mul ne neg not_ or_ pos pow sub truediv truth
xor iadd isub imul itruediv ifloordiv
""")

_MATH = _words("ceil cos exp floor gcd isqrt log log10 log2 pow prod sin sqrt trunc")
_BUILTINS = _words("abs float getattr int len max min round")

# What builtins.getattr may be asked for: facts of a tensor, nothing that leads to code.
ATTRIBUTES = frozenset(_words("shape dtype device ndim T mT H mH real imag is_cuda values indices"))

METHODS = frozenset(
    _words("""
abs abs_ absolute acos acosh add add_ addbmm addcdiv addcmul addmm addmv all allclose amax amin aminmax any arccos
arcsin arctan argmax argmin argsort asin asinh atan atan2 atanh baddbmm bfloat16 bitwise_and bitwise_not bitwise_or
bitwise_xor bmm bool broadcast_to byte ceil chunk clamp clamp_ clamp_max clamp_max_ clamp_min clamp_min_ clip clip_
clone conj contiguous copysign cos cosh count_nonzero cross cummax cummin cumprod cumsum deg2rad detach diag
diag_embed diagonal diff dim dist div div_ divide dot double dsplit eq eq_ equal erf erfc erfinv exp exp2 exp_ expand
expand_as expm1 fill_ flatten flip fliplr flipud float float_power floor floor_ floor_divide fmax fmin fmod frac
gather ge ge_ greater greater_equal gt half hardshrink heaviside hsplit hypot index_add index_copy index_fill
index_select inner int is_complex is_floating_point isclose isfinite isinf isnan kron kthvalue le lerp less less_equal
lgamma log log10 log1p log2 log_softmax logaddexp logcumsumexp logical_and logical_not logical_or logical_xor logit
logsumexp long lt masked_fill masked_fill_ masked_scatter masked_select matmul max maximum mean median min minimum mm
moveaxis movedim mul mul_ multiply mv nan_to_num nanmean nansum narrow ndimension ne neg neg_ negative nelement
new_full new_ones new_tensor new_zeros nonzero norm not_equal numel outer permute positive pow pow_ prelu prod
quantile ravel reciprocal relu relu_ remainder renorm repeat repeat_interleave reshape reshape_as roll rot90 round
round_ rsqrt scatter scatter_add scatter_reduce select sgn short sigmoid sigmoid_ sign signbit sin sinc sinh size
softmax sort split split_with_sizes sqrt sqrt_ square squeeze squeeze_ std stride sub sub_ subtract sum swapaxes
swapdims t t_ take take_along_dim tan tanh tanh_ tensor_split tile to topk transpose transpose_ tril triu true_divide
trunc type_as unbind unflatten unfold unique unsqueeze unsqueeze_ var vdot view view_as vsplit where xlogy zero_
""")
)

# Classes of torch.nn that are no layers of a network, or whose constructor takes more than plain data.
_NOT_LAYERS = frozenset(
    _words(
        "Module Container Sequential ModuleList ModuleDict ParameterList ParameterDict DataParallel RNNBase "
        "RNNCellBase Transformer TransformerEncoder TransformerDecoder SyncBatchNorm "
        "FractionalMaxPool2d FractionalMaxPool3d"
    )
)


@cache
def functions() -> Mapping[str, Callable[..., Any]]:
    """Every function that a graph may call, by the name it has in a graph."""
    import builtins
    import math
    import operator

    import torch

    found: dict[str, Callable[..., Any]] = {}
    for prefix, module, names in (
        ("torch", torch, _TORCH),
        ("torch.nn.functional", torch.nn.functional, _FUNCTIONAL),
        ("torch.special", torch.special, _SPECIAL),
        ("torch.fft", torch.fft, _FFT),
        ("torch.linalg", torch.linalg, _LINALG),
        ("operator", operator, _OPERATOR),
        ("math", math, _MATH),
        ("builtins", builtins, _BUILTINS),
    ):
        found |= {f"{prefix}.{n}": getattr(module, n) for n in names if hasattr(module, n)}
    return found


@cache
def function_names() -> Mapping[int, str]:
    """The other way round: id of a function → the name it has in a graph. Of two names, the first listed."""
    found: dict[int, str] = {}
    for name, function in functions().items():
        found.setdefault(id(function), name)
    return found


@cache
def layers() -> Mapping[str, type[nn.Module]]:
    """Every class of torch.nn that a graph may hold, by its name."""
    from torch import nn

    found = {n: k for n, k in vars(nn).items() if isinstance(k, type) and issubclass(k, nn.Module)}
    return {n: k for n, k in found.items() if n not in _NOT_LAYERS and not n.startswith("Lazy") and "Loss" not in n}


@cache
def layer_names() -> Mapping[type[nn.Module], str]:
    """The other way round: class → its name in a graph."""
    return {kind: name for name, kind in layers().items()}


@cache
def reserved() -> frozenset[str]:
    """Names that a module's path may not hold: torch keeps them for itself."""
    from torch import fx, nn

    return frozenset({*dir(nn.Module()), *dir(fx.GraphModule(nn.Module(), fx.Graph()))})


@cache
def dtypes() -> Mapping[str, Any]:
    """The dtypes that a graph may name."""
    import torch

    names = _words("bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128")
    return {n: getattr(torch, n) for n in names}


@cache
def memory_formats() -> Mapping[str, Any]:
    """The memory formats that a graph may name."""
    import torch

    names = _words("contiguous_format channels_last channels_last_3d preserve_format")
    return {n: getattr(torch, n) for n in names}
