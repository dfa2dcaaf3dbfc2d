//! pidloop
