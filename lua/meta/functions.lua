---@meta perilune.functions
--- The tensor functions of the public table. For the language server only; written by scripts/docs.lua (make docs).
error "this file describes perilune.functions to the language server; it is not to be required"

---@class perilune
local pl = {}

---Absolute value; the gradient at 0 is 0.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.abs(x) end

---a + b with broadcasting.
---@param a perilune.Tensor|number
---@param b perilune.Tensor|number
---@return perilune.Tensor
function pl.add(a, b) end

---true where no element of the given dims, or of all, is 0 (bool).
---@param x perilune.Tensor|number
---@param dims? integer|integer[]
---@param keepdim? boolean default false
---@return perilune.Tensor
function pl.all(x, dims, keepdim) end

---Is |x - y| <= atol + rtol |y| everywhere? NaN is close to nothing.
---@param x perilune.Tensor|number
---@param y perilune.Tensor|number
---@param opts? table {rtol = 1e-5, atol = 1e-8}
---@return boolean
function pl.allclose(x, y, opts) end

---true where some element of the given dims, or of all, is not 0 (bool).
---@param x perilune.Tensor|number
---@param dims? integer|integer[]
---@param keepdim? boolean default false
---@return perilune.Tensor
function pl.any(x, dims, keepdim) end

---from, from + step, ... below to, [n]; i64 when all are integers. arange(n) starts at 0.
---@param from? number default 0
---@param to number
---@param step? number default 1
---@param opts? table {dtype = "f32", requires_grad = false}
---@return perilune.Tensor
function pl.arange(from, to, step, opts) end

---Position of the largest element along a dim, or in the flattened tensor; the first of equal
---ones.
---@param x perilune.Tensor|number
---@param dim? integer
---@param keepdim? boolean default false
---@return perilune.Tensor
function pl.argmax(x, dim, keepdim) end

---Position of the smallest element along a dim, or in the flattened tensor; the first of equal
---ones.
---@param x perilune.Tensor|number
---@param dim? integer
---@param keepdim? boolean default false
---@return perilune.Tensor
function pl.argmin(x, dim, keepdim) end

---Causal softmax(q k^T / sqrt(D)) v inside each of the packed sequences seq[s]..seq[s+1] (seq
---[S+1], from 0 to N): q [N, heads*D], k, v [N, kv_heads*D]; query heads share keys in groups
---(Ainslie et al. 2023). A query sees the last `window` keys up to its own, or all (0).
---@param q perilune.Tensor|number
---@param k perilune.Tensor|number
---@param v perilune.Tensor|number
---@param seq perilune.Tensor|integer[]
---@param heads integer
---@param kv_heads integer
---@param window? integer default 0
---@return perilune.Tensor
function pl.attention(q, k, v, seq, heads, kv_heads, window) end

---Calls f(...) with the matrix products of linear layers, decoder and head in "bf16" (sums in
---f32, as do weights, their gradients and the optimizer); returns what f returns. backward
---follows what was computed, wherever it is called. "f32" switches it off inside.
---@param dtype perilune.dtype
---@param f function
---@param ... any arguments
---@return any
function pl.autocast(dtype, f, ...) end

---The tensors of a list one after the other along a dim; other sizes must agree.
---@param list perilune.Tensor[]
---@param dim? integer default 1
---@return perilune.Tensor
function pl.cat(list, dim) end

---x cut to [min, max], element by element; outside, the gradient is 0.
---@param x perilune.Tensor|number
---@param min? number default -inf
---@param max? number default inf
---@return perilune.Tensor
function pl.clamp(x, min, max) end

---A copy with storage of its own.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.clone(x) end

---The same values in row-major order: shares storage where x is so already.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.contiguous(x) end

---Cosine of x in radians.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.cos(x) end

---Running sums along a dim: position k holds the sum of 1 .. k. Integers give i64.
---@param x perilune.Tensor|number
---@param dim integer
---@return perilune.Tensor
function pl.cumsum(x, dim) end

---The same values without history: no gradient flows through it. Shares storage.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.detach(x) end

---a / b, element by element, with broadcasting; integers give f32.
---@param a perilune.Tensor|number
---@param b perilune.Tensor|number
---@return perilune.Tensor
function pl.div(a, b) end

---Rows of w [V, C] by token id (0-based): ids [...] give [..., C]. The gradient of rows picked
---more than once adds up, in order.
---@param w perilune.Tensor|number
---@param ids perilune.Tensor|integer[]
---@return perilune.Tensor
function pl.embedding(w, ids) end

---true where a equals b (a bool tensor), with broadcasting.
---@param a perilune.Tensor|number
---@param b perilune.Tensor|number
---@return perilune.Tensor
function pl.eq(a, b) end

---Same dtype, same shape and the same bytes? (x == y asks whether both are one tensor.)
---@param x perilune.Tensor|number
---@param y perilune.Tensor|number
---@return boolean
function pl.equal(x, y) end

---e to the power x, element by element.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.exp(x) end

---Dims of size 1 repeated to the given sizes without copying; -1 keeps a size. A view that cannot
---be written to.
---@param x perilune.Tensor|number
---@param ... integer|integer[] sizes
---@return perilune.Tensor
function pl.expand(x, ...) end

---exp(x) - 1, exact for small x.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.expm1(x) end

---Ones on the diagonal, [n, m].
---@param n integer
---@param m? integer default n
---@param opts? table {dtype = "f32", requires_grad = false}
---@return perilune.Tensor
function pl.eye(n, m, opts) end

---Merges the dims from `from` to `to` into one.
---@param x perilune.Tensor|number
---@param from? integer default 1
---@param to? integer default -1
---@return perilune.Tensor
function pl.flatten(x, from, to) end

---Largest whole number not above x; gradient 0.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.floor(x) end

---All equal to value.
---@param ... integer|integer[]|number|table sizes, then value, opts {dtype = "f32", requires_grad = false}
---@return perilune.Tensor
function pl.full(...) end

---y has the shape of `at`; along the dim, y[i] = x[at[i]], the other indices being the same.
---@param x perilune.Tensor|number
---@param dim integer
---@param at perilune.Tensor|integer[]
---@return perilune.Tensor
function pl.gather(x, dim, at) end

---true where a >= b (a bool tensor), with broadcasting.
---@param a perilune.Tensor|number
---@param b perilune.Tensor|number
---@return perilune.Tensor
function pl.ge(a, b) end

---x times the normal distribution function of x (Hendrycks & Gimpel 2016), exact form.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.gelu(x) end

---Is recording for backward on?
---@return boolean
function pl.grad_enabled() end

---true where a > b (a bool tensor), with broadcasting.
---@param a perilune.Tensor|number
---@param b perilune.Tensor|number
---@return perilune.Tensor
function pl.gt(a, b) end

---The given positions of one dim, in the given order; positions may repeat, gradients add.
---@param x perilune.Tensor|number
---@param dim integer
---@param at perilune.Tensor|integer[]
---@return perilune.Tensor
function pl.index_select(x, dim, at) end

---Is v a tensor?
---@param v any
---@return boolean
function pl.is_tensor(v) end

---true where x is neither NaN nor infinite (a bool tensor).
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.isfinite(x) end

---true where x is NaN (a bool tensor).
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.isnan(x) end

---(x - mean) / sqrt(variance + eps) * w + b over the last dim: x [..., C], w and b [C] (Ba et al.
---2016).
---@param x perilune.Tensor|number
---@param w perilune.Tensor|number
---@param b? perilune.Tensor|number
---@param eps? number default 1e-5
---@return perilune.Tensor
function pl.layer_norm(x, w, b, eps) end

---true where a <= b (a bool tensor), with broadcasting.
---@param a perilune.Tensor|number
---@param b perilune.Tensor|number
---@return perilune.Tensor
function pl.le(a, b) end

---x w^T: x [..., in], w [out, in] give [..., out], the layout of a checkpoint's linear weights.
---There is no bias.
---@param x perilune.Tensor|number
---@param w perilune.Tensor|number
---@return perilune.Tensor
function pl.linear(x, w) end

---n values from `from` to `to`, [n].
---@param from number
---@param to number
---@param n integer
---@param opts? table {dtype = "f32", requires_grad = false}
---@return perilune.Tensor
function pl.linspace(from, to, n, opts) end

---Natural logarithm, element by element: -inf at 0, NaN below.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.log(x) end

---log(1 + x), exact for small x.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.log1p(x) end

---log(sigmoid(x)), stable for large |x|.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.log_sigmoid(x) end

---x - logsumexp(x) along a dim: the logarithm of softmax, stable.
---@param x perilune.Tensor|number
---@param dim? integer default -1
---@return perilune.Tensor
function pl.log_softmax(x, dim) end

---true where x is 0 or false (a bool tensor).
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.logical_not(x) end

---log(sum exp(x)) over the given dims, or over all, without overflow; -inf of nothing.
---@param x perilune.Tensor|number
---@param dims? integer|integer[]
---@param keepdim? boolean default false
---@return perilune.Tensor
function pl.logsumexp(x, dims, keepdim) end

---true where a < b (a bool tensor), with broadcasting.
---@param a perilune.Tensor|number
---@param b perilune.Tensor|number
---@return perilune.Tensor
function pl.lt(a, b) end

---x with `value` where the mask is true, with broadcasting.
---@param x perilune.Tensor|number
---@param mask perilune.Tensor
---@param value number
---@return perilune.Tensor
function pl.masked_fill(x, mask, value) end

---Matrix product: [.., M, K] and [.., K, N] give [.., M, N], batch dims broadcast; a vector on
---the left is a row, on the right a column, and that dim is gone from the result.
---@param a perilune.Tensor|number
---@param b perilune.Tensor|number
---@return perilune.Tensor
function pl.matmul(a, b) end

---The largest element of all; with a dim, the largest along it and their positions. NaN wins; the
---gradient goes to the first of equal ones.
---@param x perilune.Tensor|number
---@param dim? integer
---@param keepdim? boolean default false
---@return perilune.Tensor
---@return perilune.Tensor|nil
function pl.max(x, dim, keepdim) end

---The larger of a and b, element by element; NaN if either is, a tie shares the gradient.
---@param a perilune.Tensor|number
---@param b perilune.Tensor|number
---@return perilune.Tensor
function pl.maximum(a, b) end

---Mean over the given dims, or over all; NaN of nothing. Integers give f32.
---@param x perilune.Tensor|number
---@param dims? integer|integer[]
---@param keepdim? boolean default false
---@return perilune.Tensor
function pl.mean(x, dims, keepdim) end

---The smallest element of all; with a dim, the smallest along it and their positions. NaN wins;
---the gradient goes to the first of equal ones.
---@param x perilune.Tensor|number
---@param dim? integer
---@param keepdim? boolean default false
---@return perilune.Tensor
---@return perilune.Tensor|nil
function pl.min(x, dim, keepdim) end

---The smaller of a and b, element by element; NaN if either is, a tie shares the gradient.
---@param a perilune.Tensor|number
---@param b perilune.Tensor|number
---@return perilune.Tensor
function pl.minimum(a, b) end

---a * b, element by element, with broadcasting.
---@param a perilune.Tensor|number
---@param b perilune.Tensor|number
---@return perilune.Tensor
function pl.mul(a, b) end

---`length` positions of one dim, from `start` on. A view.
---@param x perilune.Tensor|number
---@param dim integer
---@param start integer
---@param length integer
---@return perilune.Tensor
function pl.narrow(x, dim, start, length) end

---true where a differs from b (a bool tensor), with broadcasting.
---@param a perilune.Tensor|number
---@param b perilune.Tensor|number
---@return perilune.Tensor
function pl.ne(a, b) end

----x, element by element.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.neg(x) end

---Calls f(...) without recording for backward; returns what f returns.
---@param f function
---@param ... any arguments
---@return any
function pl.no_grad(f, ...) end

---(sum |x|^p)^(1/p) over the given dims, or over all; p is 1 or 2. The gradient at 0 is 0.
---@param x perilune.Tensor|number
---@param dims? integer|integer[]
---@param p? number default 2
---@param keepdim? boolean default false
---@return perilune.Tensor
function pl.norm(x, dims, p, keepdim) end

---All ones.
---@param ... integer|integer[]|number|table sizes, then opts {dtype = "f32", requires_grad = false}
---@return perilune.Tensor
function pl.ones(...) end

---With the dims in another order: dim number k of the result is dim order[k] of x. A view.
---@param x perilune.Tensor|number
---@param order? integer|integer[]
---@return perilune.Tensor
function pl.permute(x, order) end

---a to the power b, element by element, with broadcasting.
---@param a perilune.Tensor|number
---@param b perilune.Tensor|number
---@return perilune.Tensor
function pl.pow(a, b) end

---Uniform numbers in [0, 1).
---@param ... integer|integer[]|number|table sizes, then opts {dtype = "f32", seed, requires_grad = false}
---@return perilune.Tensor
function pl.rand(...) end

---Uniform whole numbers low, ..., high - 1.
---@param low integer
---@param high integer
---@param ... integer|integer[]|number|table sizes, then opts {dtype = "i64", seed}
---@return perilune.Tensor
function pl.randint(low, high, ...) end

---Standard normal numbers; the same seed is the same tensor on any number of threads.
---@param ... integer|integer[]|number|table sizes, then opts {dtype = "f32", seed, requires_grad = false}
---@return perilune.Tensor
function pl.randn(...) end

---The positions 1..n in random order, [n].
---@param n integer
---@param opts? table {seed}
---@return perilune.Tensor
function pl.randperm(n, opts) end

---1 / x, element by element.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.reciprocal(x) end

---max(x, 0); the gradient at 0 is 0.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.relu(x) end

---The same elements in the same order with other sizes; one size may be -1. Shares storage where
---x is contiguous.
---@param x perilune.Tensor|number
---@param ... integer|integer[] sizes
---@return perilune.Tensor
function pl.reshape(x, ...) end

---x / sqrt(mean(x^2) + eps) * w over the last dim: x [..., C], w [C] (Zhang and Sennrich 2019).
---@param x perilune.Tensor|number
---@param w perilune.Tensor|number
---@param eps? number default 1e-5
---@return perilune.Tensor
function pl.rms_norm(x, w, eps) end

---Rotary position embedding of x [N, heads*D] at positions pos [N] (from 0), pairs (j, j + D/2)
---turned by pos * theta^(-2j/D) (Su et al. 2021, rotate-half form).
---@param x perilune.Tensor|number
---@param pos perilune.Tensor|integer[]
---@param heads integer
---@param theta? number default 10000
---@return perilune.Tensor
function pl.rope(x, pos, heads, theta) end

---Nearest whole number, halves to the even one; gradient 0.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.round(x) end

---1 / sqrt(x), element by element.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.rsqrt(x) end

---x with values[i] added at position at[i] along the dim: the reverse of gather.
---@param x perilune.Tensor|number
---@param dim integer
---@param at perilune.Tensor|integer[]
---@param values perilune.Tensor|number
---@return perilune.Tensor
function pl.scatter_add(x, dim, at, values) end

---Seeds the random functions that are given no seed: each call then takes the next stream.
---@param seed integer
function pl.seed(seed) end

---One position of one dim; that dim is gone from the result. x[k] is select(1, k). A view.
---@param x perilune.Tensor|number
---@param dim integer
---@param at integer
---@return perilune.Tensor
function pl.select(x, dim, at) end

---1 / (1 + exp(-x)), stable for large |x|.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.sigmoid(x) end

----1, 0 or 1 by the sign of x; its gradient is 0 everywhere.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.sign(x) end

---x * sigmoid(x) (Elfwing et al. 2017), also called swish.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.silu(x) end

---a * sigmoid(a) * b, the gate of a SwiGLU layer (Shazeer 2020); equal shapes.
---@param a perilune.Tensor|number
---@param b perilune.Tensor|number
---@return perilune.Tensor
function pl.silu_mul(a, b) end

---Sine of x in radians.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.sin(x) end

---exp(x) / sum exp(x) along a dim, stable.
---@param x perilune.Tensor|number
---@param dim? integer default -1
---@return perilune.Tensor
function pl.softmax(x, dim) end

---log(1 + exp(x)), stable for large |x|. softplus(-x) is -log_sigmoid(x).
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.softplus(x) end

---The elements along a dim in order, and where they stood. Equal ones keep their order; NaN
---counts as largest.
---@param x perilune.Tensor|number
---@param dim? integer default -1
---@param descending? boolean default false
---@return perilune.Tensor
---@return perilune.Tensor
function pl.sort(x, dim, descending) end

---Square root, element by element; NaN below 0.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.sqrt(x) end

---x * x, element by element.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.square(x) end

---Without the dims of size 1, or without `dim` where that has size 1. A view.
---@param x perilune.Tensor|number
---@param dim? integer
---@return perilune.Tensor
function pl.squeeze(x, dim) end

---Tensors of one shape side by side along a new dim.
---@param list perilune.Tensor[]
---@param dim? integer default 1
---@return perilune.Tensor
function pl.stack(list, dim) end

---Standard deviation: the square root of var. Its gradient is 0 where it is 0.
---@param x perilune.Tensor|number
---@param dims? integer|integer[]
---@param unbiased? boolean default true
---@param keepdim? boolean default false
---@return perilune.Tensor
function pl.std(x, dims, unbiased, keepdim) end

---a - b with broadcasting.
---@param a perilune.Tensor|number
---@param b perilune.Tensor|number
---@return perilune.Tensor
function pl.sub(a, b) end

---Sum over the given dims, or over all. Integers give i64.
---@param x perilune.Tensor|number
---@param dims? integer|integer[]
---@param keepdim? boolean default false
---@return perilune.Tensor
function pl.sum(x, dims, keepdim) end

---The transpose of a matrix. A view.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.t(x) end

---Hyperbolic tangent, element by element.
---@param x perilune.Tensor|number
---@return perilune.Tensor
function pl.tanh(x) end

---A tensor from a number or a nested list of numbers (f32) or booleans (bool).
---@param values table
---@param opts? table {dtype = "f32", requires_grad = false}
---@return perilune.Tensor
function pl.tensor(values, opts) end

---Converted to another dtype; shares storage where it has it already. The gradient comes back in
---x's own dtype.
---@param x perilune.Tensor|number
---@param dtype perilune.dtype
---@return perilune.Tensor
function pl.to(x, dtype) end

---log softmax(h[rows] w^T)[ids]: h [N, C], w [V, C], rows [M] positions in h, ids [M] token ids
---(0-based) give [M]. Softmax's numerators are kept for backward up to 1 GiB; beyond, and without
---backward, logits exist for a block of the vocabulary at a time.
---@param h perilune.Tensor|number
---@param w perilune.Tensor|number
---@param rows perilune.Tensor|integer[]
---@param ids perilune.Tensor|integer[]
---@return perilune.Tensor
function pl.token_logprob(h, w, rows, ids) end

---The k largest (or smallest) elements along a dim in order, and where they stood.
---@param x perilune.Tensor|number
---@param k integer
---@param dim? integer default -1
---@param largest? boolean default true
---@return perilune.Tensor
---@return perilune.Tensor
function pl.topk(x, k, dim, largest) end

---With two dims exchanged. A view.
---@param x perilune.Tensor|number
---@param dim1 integer
---@param dim2 integer
---@return perilune.Tensor
function pl.transpose(x, dim1, dim2) end

---The lower triangle of each matrix, up to the given diagonal (0 = the main one); 0 above.
---@param x perilune.Tensor|number
---@param diagonal? integer default 0
---@return perilune.Tensor
function pl.tril(x, diagonal) end

---The upper triangle of each matrix, from the given diagonal (0 = the main one); 0 below.
---@param x perilune.Tensor|number
---@param diagonal? integer default 0
---@return perilune.Tensor
function pl.triu(x, diagonal) end

---With a new dim of size 1 standing at `dim`. A view.
---@param x perilune.Tensor|number
---@param dim integer
---@return perilune.Tensor
function pl.unsqueeze(x, dim) end

---Variance over the given dims, or over all: squared distances from the mean, divided by n - 1,
---or by n where unbiased is false. NaN where nothing is left to divide by.
---@param x perilune.Tensor|number
---@param dims? integer|integer[]
---@param unbiased? boolean default true
---@param keepdim? boolean default false
---@return perilune.Tensor
function pl.var(x, dims, unbiased, keepdim) end

---a where the mask is true, else b, with broadcasting.
---@param mask perilune.Tensor
---@param a perilune.Tensor|number
---@param b perilune.Tensor|number
---@return perilune.Tensor
function pl.where(mask, a, b) end

---All zeros.
---@param ... integer|integer[]|number|table sizes, then opts {dtype = "f32", requires_grad = false}
---@return perilune.Tensor
function pl.zeros(...) end
