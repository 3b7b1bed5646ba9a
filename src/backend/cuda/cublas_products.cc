#include "backend/cuda/cublas_products.h"

#include "core/error.h"

namespace polar::backend::cuda {

namespace {

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  std::fprintf(stderr, "polar: cuBLASLt: %s failed with status %d\n", what,
               static_cast<int>(status));
  std::abort();
}

}  // namespace

CublasProducts::CublasProducts(const CublasLibrary& library) : library_(library) {
  check(library_.Create(&handle_), "cublasLtCreate");
}

CublasProducts::~CublasProducts() {
  for (auto& [shape, plan] : plans_) {
    library_.MatmulDescDestroy(plan.operation);
    library_.MatrixLayoutDestroy(plan.weight);
    library_.MatrixLayoutDestroy(plan.x);
    library_.MatrixLayoutDestroy(plan.y);
  }
  library_.Destroy(handle_);
}

CublasProducts::Plan& CublasProducts::plan(const ProductShape& shape) {
  const auto [at, is_new] = plans_.try_emplace(shape);
  Plan& plan = at->second;
  if (!is_new) return plan;
  // cuBLAS counts by columns: y^T [outputs][rows] = W [outputs][k] x^T [k][rows].
  check(library_.MatmulDescCreate(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "descriptor");
  const cublasOperation_t turned = shape.by_columns ? CUBLAS_OP_N : CUBLAS_OP_T,
                          plain = CUBLAS_OP_N;
  library_.MatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, &turned,
                                  sizeof(turned));
  library_.MatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, &plain,
                                  sizeof(plain));
  const cublasLtEpilogue_t epilogue =
      shape.bias ? (shape.relu ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_BIAS)
                 : (shape.relu ? CUBLASLT_EPILOGUE_RELU : CUBLASLT_EPILOGUE_DEFAULT);
  library_.MatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                  sizeof(epilogue));
  if (shape.bias) {
    const cudaDataType_t type = shape.f32 ? CUDA_R_32F : CUDA_R_16BF;
    library_.MatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type,
                                    sizeof(type));
  }
  if (shape.by_columns) {
    check(library_.MatrixLayoutCreate(&plan.weight, CUDA_R_16BF, shape.outputs, shape.k,
                                      shape.outputs),
          "layout");
  } else {
    check(library_.MatrixLayoutCreate(&plan.weight, CUDA_R_16BF, shape.k, shape.outputs, shape.k),
          "layout");
  }
  check(library_.MatrixLayoutCreate(&plan.x, CUDA_R_16BF, shape.k, shape.rows, shape.x_stride),
        "layout");
  check(library_.MatrixLayoutCreate(&plan.y, shape.f32 ? CUDA_R_32F : CUDA_R_16BF, shape.outputs,
                                    shape.rows, shape.y_stride),
        "layout");
  cublasLtMatmulPreference_t preference;
  check(library_.MatmulPreferenceCreate(&preference), "preference");
  const size_t workspace = kWorkspaceBytes;
  library_.MatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                        &workspace, sizeof(workspace));
  cublasLtMatmulHeuristicResult_t results[8];
  int count = 0;
  const cublasStatus_t found = library_.MatmulAlgoGetHeuristic(
      handle_, plan.operation, plan.weight, plan.x, plan.y, plan.y, preference, 8, results, &count);
  if (found != CUBLAS_STATUS_NOT_SUPPORTED) check(found, "cublasLtMatmulAlgoGetHeuristic");
  library_.MatmulPreferenceDestroy(preference);
  for (int i = 0; i < count; ++i)
    if (results[i].state == CUBLAS_STATUS_SUCCESS) plan.algorithms.push_back(results[i].algo);
  return plan;
}

void CublasProducts::run(const ProductShape& shape, int algorithm, const void* x,
                         const void* weight, const void* bias, void* y, void* workspace,
                         cudaStream_t stream) {
  Plan& plan = this->plan(shape);
  if (shape.bias)
    library_.MatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                    sizeof(bias));
  const float one = 1.0f, zero = 0.0f;
  check(library_.Matmul(handle_, plan.operation, &one, weight, plan.weight, x, plan.x, &zero, y,
                        plan.y, y, plan.y, &plan.algorithms[algorithm], workspace, kWorkspaceBytes,
                        stream),
        "cublasLtMatmul");
}

}  // namespace polar::backend::cuda
