plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "dev.everlearn.sample"
    compileSdk = 36
    defaultConfig {
        applicationId = "dev.everlearn.sample"
        minSdk = 29
        targetSdk = 36
        versionCode = 1
        versionName = "0.1.0"
        ndk { abiFilters += "arm64-v8a" }
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin { jvmToolchain(17) }

dependencies {
    // Of the release v0.18.0 of microsoft/onnxruntime-genai; put it into app/libs.
    implementation(files("libs/onnxruntime-genai-android-0.18.0.aar"))
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.32.0")
}
