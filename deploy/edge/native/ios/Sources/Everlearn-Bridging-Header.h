#import <Foundation/Foundation.h>
#import <onnxruntime-genai/ort_genai_objc.h>
