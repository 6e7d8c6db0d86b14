# The numbers of glmnet.json, from R's glmnet. tests/parity/test_units_glmnet.py compares l2path with them.
# To renew them, from the root of the repository, with scikit-learn in Python and glmnet in R:
#
#   python -c "import numpy, sklearn.datasets as d; b = d.load_diabetes(scaled=False)
#   numpy.savetxt('diabetes.csv', numpy.c_[b.data, b.target], fmt='%.17g', delimiter=',')"
#   Rscript tests/golden/glmnet.R diabetes.csv > tests/golden/glmnet.json

suppressMessages(library(glmnet))

raw <- as.matrix(read.csv(commandArgs(trailingOnly = TRUE)[1], header = FALSE))[1:103, ]
# Constants, so that Python gets the same numbers: nearly centred, and of unlike spread.
centre <- c(50, 1.5, 26, 95, 50, 4.6, 91)
scale <- c(10, 1, 4, 10, 10, 0.5, 10)
x <- sweep(sweep(raw[, c(1, 2, 3, 4, 7, 9, 10)], 2, centre), 2, scale, "/")
y <- raw[, 11]
label <- as.numeric(y > 140)
level <- (y > 90) + (y > 180)
pair <- cbind(y, 10 * raw[, 5])  # beside the progression of the disease, the cholesterol
foldid <- rep(1:5, length.out = nrow(x))

strong <- exp(seq(log(3000), log(1), length.out = 13))  # beside squared errors of y / sd(y)
weak <- exp(seq(log(30), log(0.01), length.out = 13))   # beside squared errors of y
faint <- exp(seq(log(3), log(0.003), length.out = 13))  # beside deviances of classes
fit <- function(y, lambda, family = "gaussian", ...) {
  glmnet(x, y, family = family, alpha = 0, lambda = lambda, thresh = 1e-20, maxit = 1e7, ...)
}
cross <- function(y, lambda, family = "gaussian") {
  cv <- cv.glmnet(x, y, family = family, alpha = 0, lambda = lambda, thresh = 1e-20, maxit = 1e7,
                  standardize = FALSE, foldid = foldid, grouped = TRUE)
  list(lambdas = cv$lambda, cvm = cv$cvm, cvsd = cv$cvsd, lambda_min = cv$lambda.min, lambda_1se = cv$lambda.1se)
}
# One row for each lambda: the coefficients; and the intercepts.
one <- function(fit) list(lambdas = fit$lambda, coef = t(as.matrix(fit$beta)), intercept = fit$a0)
# The same with an axis for the outputs in front.
many <- function(fit) {
  list(lambdas = fit$lambda, coef = lapply(unname(fit$beta), function(b) t(as.matrix(b))), intercept = fit$a0)
}

few <- c(1, 4, 7, 10, 13)
result <- list(
  made_with = list(
    R = paste(R.version$major, R.version$minor, sep = "."), glmnet = packageDescription("glmnet")$Version
  ),
  check = list(x = colSums(x), y = sum(y)),
  gaussian = one(fit(y, strong[few], standardize = FALSE)),
  gaussian_standardized = one(fit(y, strong[few], standardize = TRUE)),
  gaussian_no_intercept = one(fit(y, strong[few], standardize = FALSE, intercept = FALSE)),
  gaussian_object = one(fit(y, weak[few], family = gaussian(), standardize = FALSE)),
  mgaussian = many(fit(pair, weak[few], family = "mgaussian", standardize = FALSE)),
  binomial = one(fit(label, faint[few], family = "binomial", standardize = FALSE)),
  multinomial = many(fit(level, faint[few], family = "multinomial", standardize = FALSE)),
  poisson = one(fit(y, weak[few], family = "poisson", standardize = FALSE)),
  cv_gaussian = cross(y, strong),
  cv_gaussian_object = cross(y, weak, gaussian()),
  cv_binomial = cross(label, faint, "binomial")
)

json <- function(value, indent = "") {
  if (is.list(value)) {
    inner <- paste0(indent, " ")
    body <- vapply(value, json, "", indent = inner)
    if (!is.null(names(value))) body <- paste0("\"", names(value), "\": ", body)
    brackets <- if (is.null(names(value))) c("[", "]") else c("{", "}")
    return(paste0(brackets[1], "\n", inner, paste(body, collapse = paste0(",\n", inner)), "\n", indent, brackets[2]))
  }
  if (is.matrix(value)) return(json(unname(lapply(seq_len(nrow(value)), function(i) value[i, ])), indent))
  if (is.character(value)) return(paste0("\"", value, "\""))
  numbers <- sprintf("%.15g", value)
  if (length(numbers) == 1) numbers else paste0("[", paste(numbers, collapse = ", "), "]")
}
cat(json(result), "\n", sep = "")
