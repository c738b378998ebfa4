---@meta perilune.Tensor
--- The methods of a tensor. For the language server only; written by scripts/docs.lua (make docs).
error "this file describes perilune.Tensor to the language server; it is not to be required"

---@alias perilune.dtype "f32"|"f64"|"bf16"|"i32"|"i64"|"bool"

---@class perilune.Tensor
---@field grad perilune.Tensor|nil what backward has gathered; may be set
---@field name string|nil of a parameter; may be set
---@field requires_grad boolean
---@field [integer] perilune.Tensor|number x[i]: a view of one dim less, negative from the end
---@operator add(perilune.Tensor|number): perilune.Tensor
---@operator sub(perilune.Tensor|number): perilune.Tensor
---@operator mul(perilune.Tensor|number): perilune.Tensor
---@operator div(perilune.Tensor|number): perilune.Tensor
---@operator pow(perilune.Tensor|number): perilune.Tensor
---@operator unm: perilune.Tensor
---@operator len: integer
local Tensor = {}

---Absolute value; the gradient at 0 is 0.
---@return perilune.Tensor
function Tensor:abs() end

---a + b with broadcasting.
---@param b perilune.Tensor|number
---@return perilune.Tensor
function Tensor:add(b) end

---x <- x + y.
---@param y perilune.Tensor|number
---@return perilune.Tensor
function Tensor:add_(y) end

---true where no element of the given dims, or of all, is 0 (bool).
---@param dims? integer|integer[]
---@param keepdim? boolean default false
---@return perilune.Tensor
function Tensor:all(dims, keepdim) end

---Is |x - y| <= atol + rtol |y| everywhere? NaN is close to nothing.
---@param y perilune.Tensor|number
---@param opts? table {rtol = 1e-5, atol = 1e-8}
---@return boolean
function Tensor:allclose(y, opts) end

---true where some element of the given dims, or of all, is not 0 (bool).
---@param dims? integer|integer[]
---@param keepdim? boolean default false
---@return perilune.Tensor
function Tensor:any(dims, keepdim) end

---Position of the largest element along a dim, or in the flattened tensor; the first of equal
---ones.
---@param dim? integer
---@param keepdim? boolean default false
---@return perilune.Tensor
function Tensor:argmax(dim, keepdim) end

---Position of the smallest element along a dim, or in the flattened tensor; the first of equal
---ones.
---@param dim? integer
---@param keepdim? boolean default false
---@return perilune.Tensor
function Tensor:argmin(dim, keepdim) end

---Adds the gradient of x into .grad of every leaf it was computed from, and frees the graph.
---Without grad, x has one element.
---@param grad? perilune.Tensor|number
function Tensor:backward(grad) end

---x cut to [min, max], element by element; outside, the gradient is 0.
---@param min? number default -inf
---@param max? number default inf
---@return perilune.Tensor
function Tensor:clamp(min, max) end

---A copy with storage of its own.
---@return perilune.Tensor
function Tensor:clone() end

---The same values in row-major order: shares storage where x is so already.
---@return perilune.Tensor
function Tensor:contiguous() end

---Writes y's values into x, broadcast and converted.
---@param y perilune.Tensor|number
---@return perilune.Tensor
function Tensor:copy_(y) end

---Cosine of x in radians.
---@return perilune.Tensor
function Tensor:cos() end

---Running sums along a dim: position k holds the sum of 1 .. k. Integers give i64.
---@param dim integer
---@return perilune.Tensor
function Tensor:cumsum(dim) end

---The same values without history: no gradient flows through it. Shares storage.
---@return perilune.Tensor
function Tensor:detach() end

---The number of dims.
---@return integer
function Tensor:dim() end

---a / b, element by element, with broadcasting; integers give f32.
---@param b perilune.Tensor|number
---@return perilune.Tensor
function Tensor:div(b) end

---x <- x / y.
---@param y perilune.Tensor|number
---@return perilune.Tensor
function Tensor:div_(y) end

---The name of the element type: f32, f64, bf16, i32, i64, bool.
---@return string
function Tensor:dtype() end

---true where a equals b (a bool tensor), with broadcasting.
---@param b perilune.Tensor|number
---@return perilune.Tensor
function Tensor:eq(b) end

---Same dtype, same shape and the same bytes? (x == y asks whether both are one tensor.)
---@param y perilune.Tensor|number
---@return boolean
function Tensor:equal(y) end

---e to the power x, element by element.
---@return perilune.Tensor
function Tensor:exp() end

---Dims of size 1 repeated to the given sizes without copying; -1 keeps a size. A view that cannot
---be written to.
---@param ... integer|integer[] sizes
---@return perilune.Tensor
function Tensor:expand(...) end

---exp(x) - 1, exact for small x.
---@return perilune.Tensor
function Tensor:expm1() end

---Sets every element.
---@param value number
---@return perilune.Tensor
function Tensor:fill_(value) end

---Merges the dims from `from` to `to` into one.
---@param from? integer default 1
---@param to? integer default -1
---@return perilune.Tensor
function Tensor:flatten(from, to) end

---Largest whole number not above x; gradient 0.
---@return perilune.Tensor
function Tensor:floor() end

---Releases the memory now; x cannot be used after. `local x <close>` does so at the end of its
---block.
function Tensor:free() end

---y has the shape of `at`; along the dim, y[i] = x[at[i]], the other indices being the same.
---@param dim integer
---@param at perilune.Tensor|integer[]
---@return perilune.Tensor
function Tensor:gather(dim, at) end

---true where a >= b (a bool tensor), with broadcasting.
---@param b perilune.Tensor|number
---@return perilune.Tensor
function Tensor:ge(b) end

---x times the normal distribution function of x (Hendrycks & Gimpel 2016), exact form.
---@return perilune.Tensor
function Tensor:gelu() end

---true where a > b (a bool tensor), with broadcasting.
---@param b perilune.Tensor|number
---@return perilune.Tensor
function Tensor:gt(b) end

---The given positions of one dim, in the given order; positions may repeat, gradients add.
---@param dim integer
---@param at perilune.Tensor|integer[]
---@return perilune.Tensor
function Tensor:index_select(dim, at) end

---Do the elements lie behind each other, row by row?
---@return boolean
function Tensor:is_contiguous() end

---true where x is neither NaN nor infinite (a bool tensor).
---@return perilune.Tensor
function Tensor:isfinite() end

---true where x is NaN (a bool tensor).
---@return perilune.Tensor
function Tensor:isnan() end

---The value of a tensor of one element.
---@return number|boolean
function Tensor:item() end

---true where a <= b (a bool tensor), with broadcasting.
---@param b perilune.Tensor|number
---@return perilune.Tensor
function Tensor:le(b) end

---Natural logarithm, element by element: -inf at 0, NaN below.
---@return perilune.Tensor
function Tensor:log() end

---log(1 + x), exact for small x.
---@return perilune.Tensor
function Tensor:log1p() end

---log(sigmoid(x)), stable for large |x|.
---@return perilune.Tensor
function Tensor:log_sigmoid() end

---x - logsumexp(x) along a dim: the logarithm of softmax, stable.
---@param dim? integer default -1
---@return perilune.Tensor
function Tensor:log_softmax(dim) end

---true where x is 0 or false (a bool tensor).
---@return perilune.Tensor
function Tensor:logical_not() end

---log(sum exp(x)) over the given dims, or over all, without overflow; -inf of nothing.
---@param dims? integer|integer[]
---@param keepdim? boolean default false
---@return perilune.Tensor
function Tensor:logsumexp(dims, keepdim) end

---true where a < b (a bool tensor), with broadcasting.
---@param b perilune.Tensor|number
---@return perilune.Tensor
function Tensor:lt(b) end

---x with `value` where the mask is true, with broadcasting.
---@param mask perilune.Tensor
---@param value number
---@return perilune.Tensor
function Tensor:masked_fill(mask, value) end

---Matrix product: [.., M, K] and [.., K, N] give [.., M, N], batch dims broadcast; a vector on
---the left is a row, on the right a column, and that dim is gone from the result.
---@param b perilune.Tensor|number
---@return perilune.Tensor
function Tensor:matmul(b) end

---The largest element of all; with a dim, the largest along it and their positions. NaN wins; the
---gradient goes to the first of equal ones.
---@param dim? integer
---@param keepdim? boolean default false
---@return perilune.Tensor
---@return perilune.Tensor|nil
function Tensor:max(dim, keepdim) end

---The larger of a and b, element by element; NaN if either is, a tie shares the gradient.
---@param b perilune.Tensor|number
---@return perilune.Tensor
function Tensor:maximum(b) end

---Mean over the given dims, or over all; NaN of nothing. Integers give f32.
---@param dims? integer|integer[]
---@param keepdim? boolean default false
---@return perilune.Tensor
function Tensor:mean(dims, keepdim) end

---The smallest element of all; with a dim, the smallest along it and their positions. NaN wins;
---the gradient goes to the first of equal ones.
---@param dim? integer
---@param keepdim? boolean default false
---@return perilune.Tensor
---@return perilune.Tensor|nil
function Tensor:min(dim, keepdim) end

---The smaller of a and b, element by element; NaN if either is, a tie shares the gradient.
---@param b perilune.Tensor|number
---@return perilune.Tensor
function Tensor:minimum(b) end

---a * b, element by element, with broadcasting.
---@param b perilune.Tensor|number
---@return perilune.Tensor
function Tensor:mul(b) end

---x <- x * y.
---@param y perilune.Tensor|number
---@return perilune.Tensor
function Tensor:mul_(y) end

---`length` positions of one dim, from `start` on. A view.
---@param dim integer
---@param start integer
---@param length integer
---@return perilune.Tensor
function Tensor:narrow(dim, start, length) end

---true where a differs from b (a bool tensor), with broadcasting.
---@param b perilune.Tensor|number
---@return perilune.Tensor
function Tensor:ne(b) end

----x, element by element.
---@return perilune.Tensor
function Tensor:neg() end

---(sum |x|^p)^(1/p) over the given dims, or over all; p is 1 or 2. The gradient at 0 is 0.
---@param dims? integer|integer[]
---@param p? number default 2
---@param keepdim? boolean default false
---@return perilune.Tensor
function Tensor:norm(dims, p, keepdim) end

---The number of elements.
---@return integer
function Tensor:numel() end

---With the dims in another order: dim number k of the result is dim order[k] of x. A view.
---@param order? integer|integer[]
---@return perilune.Tensor
function Tensor:permute(order) end

---a to the power b, element by element, with broadcasting.
---@param b perilune.Tensor|number
---@return perilune.Tensor
function Tensor:pow(b) end

---1 / x, element by element.
---@return perilune.Tensor
function Tensor:reciprocal() end

---max(x, 0); the gradient at 0 is 0.
---@return perilune.Tensor
function Tensor:relu() end

---Marks a leaf: backward will add its gradient into x.grad. Returns x.
---@param on? boolean default true
---@return perilune.Tensor
function Tensor:requires_grad_(on) end

---The same elements in the same order with other sizes; one size may be -1. Shares storage where
---x is contiguous.
---@param ... integer|integer[] sizes
---@return perilune.Tensor
function Tensor:reshape(...) end

---Nearest whole number, halves to the even one; gradient 0.
---@return perilune.Tensor
function Tensor:round() end

---1 / sqrt(x), element by element.
---@return perilune.Tensor
function Tensor:rsqrt() end

---x with values[i] added at position at[i] along the dim: the reverse of gather.
---@param dim integer
---@param at perilune.Tensor|integer[]
---@param values perilune.Tensor|number
---@return perilune.Tensor
function Tensor:scatter_add(dim, at, values) end

---One position of one dim; that dim is gone from the result. x[k] is select(1, k). A view.
---@param dim integer
---@param at integer
---@return perilune.Tensor
function Tensor:select(dim, at) end

---All sizes, as a list.
---@return integer[]
function Tensor:shape() end

---1 / (1 + exp(-x)), stable for large |x|.
---@return perilune.Tensor
function Tensor:sigmoid() end

----1, 0 or 1 by the sign of x; its gradient is 0 everywhere.
---@return perilune.Tensor
function Tensor:sign() end

---x * sigmoid(x) (Elfwing et al. 2017), also called swish.
---@return perilune.Tensor
function Tensor:silu() end

---Sine of x in radians.
---@return perilune.Tensor
function Tensor:sin() end

---The size of one dim, or the list of all sizes.
---@param dim? integer
---@return integer|integer[]
function Tensor:size(dim) end

---Positions from..to of one dim, both included, counted from 1 or from -1 at the end; a view.
---x[{i, {from, to}, {}}] does it dim by dim.
---@param dim integer
---@param from integer
---@param to? integer default -1
---@return perilune.Tensor
function Tensor:slice(dim, from, to) end

---exp(x) / sum exp(x) along a dim, stable.
---@param dim? integer default -1
---@return perilune.Tensor
function Tensor:softmax(dim) end

---log(1 + exp(x)), stable for large |x|. softplus(-x) is -log_sigmoid(x).
---@return perilune.Tensor
function Tensor:softplus() end

---The elements along a dim in order, and where they stood. Equal ones keep their order; NaN
---counts as largest.
---@param dim? integer default -1
---@param descending? boolean default false
---@return perilune.Tensor
---@return perilune.Tensor
function Tensor:sort(dim, descending) end

---Square root, element by element; NaN below 0.
---@return perilune.Tensor
function Tensor:sqrt() end

---x * x, element by element.
---@return perilune.Tensor
function Tensor:square() end

---Without the dims of size 1, or without `dim` where that has size 1. A view.
---@param dim? integer
---@return perilune.Tensor
function Tensor:squeeze(dim) end

---Standard deviation: the square root of var. Its gradient is 0 where it is 0.
---@param dims? integer|integer[]
---@param unbiased? boolean default true
---@param keepdim? boolean default false
---@return perilune.Tensor
function Tensor:std(dims, unbiased, keepdim) end

---a - b with broadcasting.
---@param b perilune.Tensor|number
---@return perilune.Tensor
function Tensor:sub(b) end

---x <- x - y.
---@param y perilune.Tensor|number
---@return perilune.Tensor
function Tensor:sub_(y) end

---Sum over the given dims, or over all. Integers give i64.
---@param dims? integer|integer[]
---@param keepdim? boolean default false
---@return perilune.Tensor
function Tensor:sum(dims, keepdim) end

---The transpose of a matrix. A view.
---@return perilune.Tensor
function Tensor:t() end

---Hyperbolic tangent, element by element.
---@return perilune.Tensor
function Tensor:tanh() end

---Converted to another dtype; shares storage where it has it already. The gradient comes back in
---x's own dtype.
---@param dtype perilune.dtype
---@return perilune.Tensor
function Tensor:to(dtype) end

---All values as nested lists.
---@return table
function Tensor:tolist() end

---The k largest (or smallest) elements along a dim in order, and where they stood.
---@param k integer
---@param dim? integer default -1
---@param largest? boolean default true
---@return perilune.Tensor
---@return perilune.Tensor
function Tensor:topk(k, dim, largest) end

---With two dims exchanged. A view.
---@param dim1 integer
---@param dim2 integer
---@return perilune.Tensor
function Tensor:transpose(dim1, dim2) end

---The lower triangle of each matrix, up to the given diagonal (0 = the main one); 0 above.
---@param diagonal? integer default 0
---@return perilune.Tensor
function Tensor:tril(diagonal) end

---The upper triangle of each matrix, from the given diagonal (0 = the main one); 0 below.
---@param diagonal? integer default 0
---@return perilune.Tensor
function Tensor:triu(diagonal) end

---With a new dim of size 1 standing at `dim`. A view.
---@param dim integer
---@return perilune.Tensor
function Tensor:unsqueeze(dim) end

---Variance over the given dims, or over all: squared distances from the mean, divided by n - 1,
---or by n where unbiased is false. NaN where nothing is left to divide by.
---@param dims? integer|integer[]
---@param unbiased? boolean default true
---@param keepdim? boolean default false
---@return perilune.Tensor
function Tensor:var(dims, unbiased, keepdim) end

---A count that grows with every in-place change of the values.
---@return integer
function Tensor:version() end

---Sets every element to 0.
---@return perilune.Tensor
function Tensor:zero_() end

---Forgets x.grad. Returns x.
---@return perilune.Tensor
function Tensor:zero_grad() end
