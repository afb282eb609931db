// Runs a SavedModel through TensorFlow's C API, as a server without Python does.
//
//   serve FOLDER NUM_ROWS OUTPUT OUTPUT_FILE [INPUT TYPE ROW_SIZE INPUT_FILE]...
//
// INPUT and OUTPUT are names of operations; TYPE is "float" or "int64". An input is
// [NUM_ROWS, ROW_SIZE], or [NUM_ROWS] where ROW_SIZE is 0, and its file holds the values as they
// are in memory. The output is float [NUM_ROWS, 1] and is written likewise.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"

static const int kMaxInputs = 8;

static void Check(int ok, const char* what) {
  if (!ok) {
    fprintf(stderr, "%s\n", what);
    exit(1);
  }
}

static void CheckStatus(const TF_Status* status) {
  Check(TF_GetCode(status) == TF_OK, TF_Message(status));
}

static TF_Output Operation(TF_Graph* graph, const char* name) {
  TF_Output output = {TF_GraphOperationByName(graph, name), 0};
  Check(output.oper != NULL, name);
  return output;
}

static TF_Tensor* ReadTensor(const char* type, int64_t num_rows, int64_t row_size,
                             const char* path) {
  const int64_t dims[2] = {num_rows, row_size};
  const TF_DataType dtype = strcmp(type, "float") == 0 ? TF_FLOAT : TF_INT64;
  const size_t num_values = (size_t)(num_rows * (row_size == 0 ? 1 : row_size));
  TF_Tensor* tensor =
      TF_AllocateTensor(dtype, dims, row_size == 0 ? 1 : 2, num_values * TF_DataTypeSize(dtype));
  FILE* file = fopen(path, "rb");
  Check(file != NULL, path);
  const size_t size = TF_TensorByteSize(tensor);
  Check(fread(TF_TensorData(tensor), 1, size, file) == size, "an input file is too short");
  fclose(file);
  return tensor;
}

int main(int argc, char** argv) {
  Check(argc > 5 && (argc - 5) % 4 == 0 && (argc - 5) / 4 <= kMaxInputs, "wrong usage");
  const int num_inputs = (argc - 5) / 4;
  const int64_t num_rows = atoll(argv[2]);
  TF_Status* status = TF_NewStatus();
  TF_SessionOptions* options = TF_NewSessionOptions();
  TF_Graph* graph = TF_NewGraph();
  const char* tags[] = {"serve"};
  TF_Session* session =
      TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  CheckStatus(status);

  TF_Output inputs[8];
  TF_Tensor* values[8];
  for (int i = 0; i < num_inputs; ++i) {
    char** argument = argv + 5 + 4 * i;
    inputs[i] = Operation(graph, argument[0]);
    values[i] = ReadTensor(argument[1], num_rows, atoll(argument[2]), argument[3]);
  }
  const TF_Output output = Operation(graph, argv[3]);
  TF_Tensor* answer = NULL;
  TF_SessionRun(session, NULL, inputs, values, num_inputs, &output, &answer, 1, NULL, 0, NULL,
                status);
  CheckStatus(status);
  Check(TF_TensorByteSize(answer) == (size_t)num_rows * sizeof(float), "an output of another size");

  FILE* file = fopen(argv[4], "wb");
  Check(file != NULL, argv[4]);
  Check(fwrite(TF_TensorData(answer), sizeof(float), (size_t)num_rows, file) == (size_t)num_rows,
        "the output file cannot be written");
  Check(fclose(file) == 0, "the output file cannot be written");

  TF_DeleteTensor(answer);
  for (int i = 0; i < num_inputs; ++i) TF_DeleteTensor(values[i]);
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteGraph(graph);
  TF_DeleteSessionOptions(options);
  TF_DeleteStatus(status);
  return 0;
}
